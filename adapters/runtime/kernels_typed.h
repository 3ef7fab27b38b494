/* The kernels' bodies; kernels.c includes this once a dtype. */

/* Up to LANES values; lanes beyond num are zero. */
static inline __attribute__((always_inline)) vec NAME(read)(const TYPE *source, int64_t num) {
    if (num >= LANES) return sizeof(TYPE) == 2 ? read_lanes(source) : (vec)*(const anywhere *)source;
    vec line = {0};
    for (int64_t d = 0; d < num; d++) ((float *)&line)[d] = LOAD(source[d]);
    return line;
}

static inline __attribute__((always_inline)) void NAME(write)(TYPE *target, vec line, int64_t num) {
    if (num < LANES)
        for (int64_t d = 0; d < num; d++) target[d] = STORE(((const float *)&line)[d]);
    else if (sizeof(TYPE) == 2)
        write_lanes(target, line);
    else
        *(anywhere *)target = line;
}

/* Products of two lines, each lane's added up; the caller sums the lanes. */
static inline __attribute__((always_inline)) vec NAME(dot)(const TYPE *x, const TYPE *y, int64_t size) {
    vec sum = {0};
    int64_t d = 0;
#ifdef PAIRS
    if (sizeof(TYPE) == 2)
        for (; d + 2 * LANES <= size; d += 2 * LANES) sum = dot_pairs(sum, x + d, y + d);
#endif
    for (; d < size; d += LANES) sum += NAME(read)(x + d, size - d) * NAME(read)(y + d, size - d);
    return sum;
}

/* low = A x, each token by itself. Meanwhile memory is asked for what comes next. */
static void NAME(shrink)(const TYPE *x, int64_t x_stride, int num_tokens, int64_t inputs, const TYPE *a, int rank,
                         float *low, struct ahead ahead) {
    for (int t = 0; t < num_tokens; t++)
        for (int first = 0; first < rank; first += LANES) {
            vec products[LANES], *sums = (vec *)(low + t * MAX_RANK + first);
            for (int r = 0; r < LANES; r++) {
                if (t == 0 && first + r < rank) ask_for_piece(&ahead);
                products[r] = first + r < rank ? NAME(dot)(x + t * x_stride, a + (first + r) * inputs, inputs) : (vec){0};
            }
            *sums = sums_of(products);
        }
}

/* out += B low. Inlined, so that the number of tokens is known. */
static inline __attribute__((always_inline)) void NAME(expand)(const float *low, int num_tokens, const TYPE *b, int rank,
                                                               int64_t outputs, TYPE *out, int64_t out_stride,
                                                               struct ahead ahead) {
    for (int64_t o = 0; o < outputs; o += VECTORS * LANES) {
        ask_for_piece(&ahead);
        vec sums[TILE][VECTORS] = {{{0}}};
        for (int r = 0; r < rank; r++) {
            vec w[VECTORS];
            for (int v = 0; v < VECTORS; v++)
                w[v] = NAME(read)(b + r * outputs + o + v * LANES, outputs - o - v * LANES);
            for (int t = 0; t < num_tokens; t++)
                for (int v = 0; v < VECTORS; v++) sums[t][v] += low[t * MAX_RANK + r] * w[v];
        }
        for (int t = 0; t < num_tokens; t++)
            for (int v = 0; v < VECTORS; v++) {
                TYPE *target = out + t * out_stride + o + v * LANES;
                int64_t left = outputs - o - v * LANES;
                NAME(write)(target, NAME(read)(target, left) + sums[t][v], left);
            }
    }
}

/* out += B (A x) for each tile's tokens, for every module of a group that reads the same x.
 * tiles: [num_tiles, 3] first token, tokens (0 to TILE; 0: nothing is done), adapter. outputs: [num_modules] widths, side by side in out.
 * table: for an adapter, at adapter * table_stride, [num_modules, 3] address of A, address of B, rank (0: none). */
void NAME(lora)(const TYPE *x, int64_t x_stride, int64_t inputs, TYPE *out, int64_t out_stride,
                const int32_t *tiles, int64_t num_tiles, const int64_t *table, int64_t table_stride,
                const int64_t *outputs, int64_t num_modules) {
#pragma omp parallel for schedule(static)
    for (int64_t tile = 0; tile < num_tiles; tile++) {
        int first = tiles[tile * 3], num_tokens = tiles[tile * 3 + 1];
        if (!num_tokens) continue;
        const int64_t *entry = table + tiles[tile * 3 + 2] * table_stride;
        const int64_t *after = table + (tile + 1 < num_tiles ? tiles[tile * 3 + 5] * table_stride : 0);
        float low[TILE * MAX_RANK] __attribute__((aligned(64)));
        TYPE *target = out + first * out_stride;
        for (int64_t m = 0; m < num_modules; target += outputs[m], m++) {
            int rank = (int)entry[m * 3 + 2];
            if (!rank) continue;
            const TYPE *a = (const TYPE *)entry[m * 3], *b = (const TYPE *)entry[m * 3 + 1];
            /* Adapters lie apart: what comes next must be asked for. */
            int64_t later = m + 1 < num_modules ? m + 1 : 0, strips = (outputs[m] + VECTORS * LANES - 1) / (VECTORS * LANES);
            const int64_t *next = later ? entry + 3 * later : after;
            struct ahead next_a = ahead_of(next[0], next[2] * inputs * sizeof(TYPE), rank);
            struct ahead next_b = ahead_of(next[1], next[2] * outputs[later] * sizeof(TYPE), strips);
            NAME(shrink)(x + first * x_stride, x_stride, num_tokens, inputs, a, rank, low, next_a);
            if (num_tokens == 1) NAME(expand)(low, 1, b, rank, outputs[m], target, out_stride, next_b);
            else if (num_tokens == 2) NAME(expand)(low, 2, b, rank, outputs[m], target, out_stride, next_b);
            else if (num_tokens == 3) NAME(expand)(low, 3, b, rank, outputs[m], target, out_stride, next_b);
            else NAME(expand)(low, TILE, b, rank, outputs[m], target, out_stride, next_b);
        }
    }
}

/* sums[i] += weights[i] values for a few heads that share values: many heads, wide vectors of each. Inlined, so that both are
 * known and the sums stay in registers. weights: SPAN of each head; num: cells of the blocks; left: numbers of a head from here;
 * after: the values that are read next. */
static inline __attribute__((always_inline)) void NAME(add_cells)(const TYPE *values, const TYPE *after, const int32_t *blocks,
                                                                  int num, int64_t cell, int left, const float *weights,
                                                                  int many, int wide, vec (*sums)[MAX_HEAD / LANES]) {
    vec parts[SHARE][WIDE(1)];
    for (int i = 0; i < many; i++)
        for (int v = 0; v < wide; v++) parts[i][v] = sums[i][v];
    for (int at = 0; at < num; at += BLOCK) {
        const TYPE *value = values + blocks[at / BLOCK] * BLOCK * cell;
        int later = at / BLOCK + VALUES_AHEAD, left_over = later - (num + BLOCK - 1) / BLOCK;
        const TYPE *next = left_over < 0                 ? values + blocks[later] * BLOCK * cell
                           : left_over * BLOCK < num ? after + blocks[left_over] * BLOCK * cell
                                                     : value;
        int here = num - at < BLOCK ? num - at : BLOCK;
        for (int c = 0; c < here; c++) {
            for (int v = 0; v < wide; v += 64 / (int)sizeof(TYPE) / LANES)
                __builtin_prefetch(next + c * cell + v * LANES);
            for (int v = 0; v < wide; v++) {
                vec line = NAME(read)(value + c * cell + v * LANES, left - v * LANES);
                for (int i = 0; i < many; i++) parts[i][v] += weights[i * SPAN + at + c] * line;
            }
        }
    }
    for (int i = 0; i < many; i++)
        for (int v = 0; v < wide; v++) sums[i][v] = parts[i][v];
}

static __attribute__((noinline)) void NAME(add_values)(const TYPE *values, const int32_t *blocks, int num, int64_t cell,
                                                       int size, const float *weights, int shared,
                                                       vec (*sums)[MAX_HEAD / LANES]) {
    for (int first = 0; first < shared; first += SHARE) {
        int many = shared - first < SHARE ? shared - first : SHARE, wide;
        for (int v = 0; v * LANES < size; v += wide) {
            int left = size - v * LANES;
            const TYPE *from = values + v * LANES;
            const float *own = weights + first * SPAN;
            vec (*to)[MAX_HEAD / LANES] = (vec (*)[MAX_HEAD / LANES])(sums[first] + v);
            const TYPE *after = from + WIDE(many) * LANES; /* of this head, or of the next, which stands beside it */
            wide = left >= WIDE(many) * LANES ? WIDE(many) : 1;
#define ADD_CELLS(heads)                                                                                              \
    if (wide > 1) NAME(add_cells)(from, after, blocks, num, cell, WIDE(heads) * LANES, own, heads, WIDE(heads), to);         \
    else NAME(add_cells)(from, after, blocks, num, cell, left, own, heads, 1, to)
            if (many == 1) ADD_CELLS(1);
            else if (many == 2) ADD_CELLS(2);
            else if (many == 3) ADD_CELLS(3);
            else ADD_CELLS(4);
#undef ADD_CELLS
        }
    }
}

/* One row's query token against its own past, for count key-value heads and the shared query heads of each: softmax(q k) v,
 * SPAN cells at a time (online softmax: Milakov and Gimelshein, arXiv 1805.02867). Inlined, so that a known size unrolls its
 * loops. */
static inline __attribute__((always_inline)) void NAME(attend_heads)(
    const TYPE *q, int64_t q_head, const TYPE *keys, const TYPE *values, const int32_t *blocks, int length, TYPE *out,
    int count, int shared, int64_t cell, int size, float scale) {
    int vectors = (size + LANES - 1) / LANES, heads = count * shared;
    int ahead = count * size * BLOCK * (int)sizeof(TYPE) > NEAREST ? 1 : 2; /* blocks that are asked for in advance */
    vec sums[MAX_HEADS][MAX_HEAD / LANES], weights[MAX_HEADS][SPAN / LANES], most[MAX_HEADS];
    float top[MAX_HEADS], total[MAX_HEADS];
    for (int h = 0; h < heads; h++) {
        for (int v = 0; v < vectors; v++) sums[h][v] = (vec){0};
        top[h] = -INFINITY;
        total[h] = 0;
    }
    for (int start = 0; start < length; start += SPAN, blocks += SPAN / BLOCK) {
        int num = length - start < SPAN ? length - start : SPAN;
        for (int h = 0; h < heads; h++) most[h] = (vec){0} - INFINITY;
        for (int at = 0; at < num; at += BLOCK) {
            int64_t base = blocks[at / BLOCK] * BLOCK * cell;
            int later = at / BLOCK + ahead, left_over = later - (num + BLOCK - 1) / BLOCK;
            const TYPE *next = left_over < 0 ? keys + blocks[later] * BLOCK * cell
                                             : values + blocks[left_over * BLOCK < num ? left_over : 0] * BLOCK * cell;
            for (int k = 0; k < count; k++) {
                const TYPE *key = keys + base + k * size;
                for (int c = 0; c < BLOCK; c++) /* the processor does not see by itself which block comes next */
                    for (int d = 0; d < size; d += 64 / (int)sizeof(TYPE))
                        __builtin_prefetch(next + k * size + c * cell + d);
                for (int s = 0; s < BLOCK / LANES; s++) {
                    const TYPE *line = key + s * LANES * cell;
                    int here = num - at - s * LANES;
                    for (int g = 0; g < shared; g++) {
                        int h = k * shared + g;
                        vec products[LANES], scores;
                        if (here >= LANES)
                            for (int c = 0; c < LANES; c++) products[c] = NAME(dot)(q + h * q_head, line + c * cell, size);
                        else
                            for (int c = 0; c < LANES; c++)
                                products[c] = c < here ? NAME(dot)(q + h * q_head, line + c * cell, size) : (vec){0};
                        scores = sums_of(products) * scale;
                        scores = choose((lanes){COUNT} < here, scores, (vec){0} - INFINITY); /* weighs nothing */
                        most[h] = choose(scores > most[h], scores, most[h]);
                        weights[h][at / LANES + s] = scores;
                    }
                }
            }
        }
        for (int h = 0; h < heads; h++) {
            float high = largest_of(most[h]), shrunk;
            if (top[h] > high) high = top[h];
            shrunk = exp_lanes((vec){0} + (top[h] - high))[0];
            vec sum = {0};
            for (int i = 0; i * LANES < num; i++) sum += weights[h][i] = exp_lanes(weights[h][i] - high);
            total[h] = total[h] * shrunk + sum_of(sum);
            top[h] = high;
            for (int v = 0; v < vectors; v++) sums[h][v] *= shrunk;
        }
        for (int k = 0; k < count; k++)
            NAME(add_values)(values + k * size, blocks, num, cell, size, (const float *)weights[k * shared], shared,
                             sums + k * shared);
    }
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++)
            NAME(write)(out + h * size + v * LANES, sums[h][v] / total[h], size - v * LANES);
}

/* Attention of rows that have one new token each. q: [rows, heads, size] with strides; out: the same, contiguous; keys, values:
 * [cells, kv_heads, size]; blocks: [rows, width]; lengths: cells of each row. */
void NAME(attend)(const TYPE *q, int64_t q_row, int64_t q_head, const TYPE *keys, const TYPE *values,
                  const int32_t *blocks, int64_t width, const int32_t *lengths, TYPE *out, int64_t rows,
                  int64_t heads, int64_t kv_heads, int64_t size, float scale) {
    int shared = (int)(heads / kv_heads);
    int64_t cell = kv_heads * size;
    /* All heads of a row at once read its cells in one go; few rows are shared out by heads, so that no core waits. */
    int count = rows < 8 || heads > MAX_HEADS ? 1 : (int)kv_heads, parts = (int)kv_heads / count;
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = 0; task < rows * parts; task++) {
        int64_t row = task / parts, first = task % parts * count;
        const TYPE *query = q + row * q_row + first * shared * q_head;
        const TYPE *key = keys + first * size, *value = values + first * size;
        TYPE *target = out + (row * heads + first * shared) * size;
        const int32_t *own = blocks + row * width;
        if (size == 64 && shared == 3)
            NAME(attend_heads)(query, q_head, key, value, own, lengths[row], target, count, 3, cell, 64, scale);
        else if (size == 64)
            NAME(attend_heads)(query, q_head, key, value, own, lengths[row], target, count, shared, cell, 64, scale);
        else if (size == 128)
            NAME(attend_heads)(query, q_head, key, value, own, lengths[row], target, count, shared, cell, 128, scale);
        else
            NAME(attend_heads)(query, q_head, key, value, own, lengths[row], target, count, shared, cell, (int)size, scale);
    }
}

/* Up to LANES queries that share a key-value head. A token attends to those of its row less than window away, and with
 * causal to none after it. first: the first query's position in its row; cells: where the row's blocks begin.
 * Lanes are queries, so that softmax needs no sums across lanes. */
static inline __attribute__((always_inline)) void NAME(attend_tile)(
    const TYPE *q, int64_t q_token, int64_t q_head, const TYPE *keys, const TYPE *values, int64_t k_cell, int64_t v_cell,
    const int32_t *cells, int64_t first, int num, int64_t length, TYPE *out, int64_t out_token, int shared, int size,
    float scale, int causal, int64_t window) {
    int vectors = (size + LANES - 1) / LANES;
    vec sums[shared][vectors][LANES], lines[vectors][BLOCK], top[shared], total[shared];
    for (int g = 0; g < shared; g++) {
        for (int v = 0; v < vectors; v++)
            for (int i = 0; i < LANES; i++) sums[g][v][i] = (vec){0};
        top[g] = (vec){0} - INFINITY;
        total[g] = (vec){0};
    }
#ifdef PAIRS
    int is_paired = sizeof(TYPE) == 2 && size % LANES == 0, pairs = size / 2;
    uint32_t queries[shared][pairs * BLOCK] __attribute__((aligned(64))), panel[pairs * BLOCK] __attribute__((aligned(64)));
#else
    int is_paired = 0;
#endif
    vec turned[is_paired ? 1 : shared][vectors * LANES]; /* for each number of a head, that of all queries */
    float wide[BLOCK][vectors * LANES] __attribute__((aligned(4 * LANES))); /* written as vectors */
    for (int g = 0; g < shared; g++) {
#ifdef PAIRS
        if (is_paired) pair_up((const bf16 *)q + g * q_head, q_token, num, BLOCK, pairs, queries[g]);
#endif
        for (int v = 0; v < vectors && !is_paired; v++) {
            for (int i = 0; i < LANES; i++)
                turned[g][v * LANES + i] = NAME(read)(q + g * q_head + (i < num ? i : 0) * q_token + v * LANES, size - v * LANES);
            turn_vectors(turned[g] + v * LANES);
        }
    }
    int64_t last = first + num - 1, stop = causal ? last + 1 : length, low = first - window + 1;
    if (stop > last + window) stop = last + window;
    for (int64_t start = low > 0 ? low / BLOCK * BLOCK : 0; start < stop; start += BLOCK) {
        const TYPE *key = keys + cells[start / BLOCK] * k_cell, *value = values + cells[start / BLOCK] * v_cell;
        int there = length - start < BLOCK ? (int)(length - start) : BLOCK;
        int is_whole = there == BLOCK && (!causal || start + BLOCK - 1 <= first) && last - start < window &&
                       start + BLOCK - 1 - first < window;
        for (int v = 0; v < vectors; v++)
            for (int c = 0; c < BLOCK; c++)
                lines[v][c] = c < there ? NAME(read)(value + c * v_cell + v * LANES, size - v * LANES) : (vec){0};
#ifdef PAIRS
        if (is_paired) pair_up((const bf16 *)key, k_cell, there, BLOCK, pairs, panel);
#endif
        for (int c = 0; c < BLOCK && !is_paired; c++)
            for (int v = 0; v < vectors; v++)
                *(vec *)(wide[c] + v * LANES) = c < there ? NAME(read)(key + c * k_cell + v * LANES, size - v * LANES) : (vec){0};
        for (int g = 0; g < shared; g++) {
            vec weights[BLOCK];
#ifdef PAIRS
            if (is_paired) score_tile(panel, queries[g], pairs, weights);
#endif
            for (int c = 0; c < BLOCK && !is_paired; c += TOGETHER) {
                vec parts[TOGETHER];
                for (int i = 0; i < TOGETHER; i++) parts[i] = (vec){0};
                for (int d = 0; d < size; d++)
                    for (int i = 0; i < TOGETHER; i++) parts[i] += wide[c + i][d] * turned[g][d];
                for (int i = 0; i < TOGETHER; i++) weights[c + i] = parts[i];
            }
            for (int c = 0; c < BLOCK; c++) weights[c] *= scale;
            if (!is_whole) hide_cells(weights, first - start, there, causal, window);
            vec shrunk = take_weights(weights, &top[g], &total[g]);
            for (int v = 0; v < vectors; v++)
                for (int i = 0; i < num; i += TOGETHER) {
                    vec parts[TOGETHER];
                    for (int j = 0; j < TOGETHER; j++) parts[j] = sums[g][v][i + j] * ((float *)&shrunk)[i + j];
                    for (int c = 0; c < BLOCK; c++)
                        for (int j = 0; j < TOGETHER; j++) parts[j] += ((float *)&weights[c])[i + j] * lines[v][c];
                    for (int j = 0; j < TOGETHER; j++) sums[g][v][i + j] = parts[j];
                }
        }
    }
    for (int i = 0; i < num; i++)
        for (int g = 0; g < shared; g++)
            for (int v = 0; v < vectors; v++)
                NAME(write)(out + i * out_token + g * size + v * LANES, sums[g][v][i] / ((float *)&total[g])[i],
                            size - v * LANES);
}

/* Attention of rows that have several new tokens each. q, out: [tokens, heads, size]; keys, values: [cells, kv_heads, size];
 * all with strides, sizes contiguous. rows: [num, 4] first token, new tokens, tokens with those before, first of its blocks
 * in cells; cells: the first cell of each block of 16. num_tiles: tiles of 16 tokens in all rows. */
void NAME(attend_rows)(const TYPE *q, int64_t q_token, int64_t q_head, const TYPE *keys, int64_t k_cell, int64_t k_head,
                       const TYPE *values, int64_t v_cell, int64_t v_head, const int32_t *rows, int64_t num,
                       int64_t num_tiles, const int32_t *cells, TYPE *out, int64_t heads, int64_t kv_heads, int64_t size,
                       float scale, int64_t causal, int64_t window) {
    int shared = (int)(heads / kv_heads);
    int32_t tiles[num_tiles][2];
    for (int64_t r = num - 1, t = 0; r >= 0; r--) /* the longest tiles first, so that no core waits for them at the end */
        for (int32_t i = (rows[r * 4 + 1] + BLOCK - 1) / BLOCK - 1; i >= 0; i--, t++)
            tiles[t][0] = (int32_t)r, tiles[t][1] = i * BLOCK;
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = 0; task < num_tiles * kv_heads; task++) {
        const int32_t *row = rows + tiles[task / kv_heads][0] * 4;
        int64_t from = tiles[task / kv_heads][1], head = task % kv_heads, left = row[1] - from;
        int64_t token = row[0] + from;
        const TYPE *query = q + token * q_token + head * shared * q_head, *key = keys + head * k_head;
        const TYPE *value = values + head * v_head;
        TYPE *to = out + (token * heads + head * shared) * size;
        int64_t first = row[2] - row[1] + from;
        int count = left < BLOCK ? (int)left : BLOCK;
#define ATTEND(of_size)                                                                                                \
    for (int i = 0; i < count; i += LANES)                                                                            \
    NAME(attend_tile)(query + i * q_token, q_token, q_head, key, value, k_cell, v_cell, cells + row[3], first + i,    \
                      count - i < LANES ? count - i : LANES, row[2], to + i * heads * size, heads * size, shared,     \
                      of_size, scale, (int)causal, window)
        if (size == 64) ATTEND(64);
        else if (size == 32) ATTEND(32);
        else ATTEND((int)size);
#undef ATTEND
    }
}

/* out = weight * (x / sqrt(mean(x^2) + epsilon)), rounded where the library's RMSNorm rounds. x: [rows, size]. */
void NAME(rms_norm)(const TYPE *x, int64_t stride, const TYPE *weight, TYPE *out, int64_t rows, int64_t size,
                    float epsilon) {
#pragma omp parallel for schedule(static) if (rows > 4)
    for (int64_t row = 0; row < rows; row++) {
        const TYPE *source = x + row * stride;
        float square = 0;
#pragma omp simd reduction(+ : square)
        for (int64_t d = 0; d < size; d++) square += LOAD(source[d]) * LOAD(source[d]);
        float factor = 1.0f / sqrtf(square / size + epsilon);
        for (int64_t d = 0; d < size; d++)
            out[row * size + d] = STORE(LOAD(weight[d]) * LOAD(STORE(LOAD(source[d]) * factor)));
    }
}

/* out = silu(gate) * up, rounded in between as the library does. x: [rows, 2 * size], gate and up side by side. */
void NAME(silu_mul)(const TYPE *x, TYPE *out, int64_t rows, int64_t size) {
#pragma omp parallel for schedule(static) if (rows > 4)
    for (int64_t row = 0; row < rows; row++) {
        const TYPE *gate = x + row * 2 * size, *up = gate + size;
        for (int64_t d = 0; d < size; d += LANES) {
            vec g = NAME(read)(gate + d, size - d);
            TYPE silu[LANES];
            NAME(write)(silu, g * sigmoid_of(g), LANES);
            NAME(write)(out + row * size + d, NAME(read)(silu, LANES) * NAME(read)(up + d, size - d), size - d);
        }
    }
}

/* Rotary position embedding in place (Su et al., arXiv 2104.09864), rounded where the library rounds. x: [tokens, heads, size];
 * cos, sin: [tokens, size], contiguous. */
void NAME(rotate)(TYPE *x, int64_t x_token, const TYPE *cos, const TYPE *sin, int64_t tokens, int64_t heads, int64_t size) {
    int64_t half = size / 2;
#pragma omp parallel for schedule(static) if (tokens > 4)
    for (int64_t t = 0; t < tokens; t++) {
        const TYPE *c = cos + t * size, *s = sin + t * size;
        for (int64_t h = 0; h < heads; h++) {
            TYPE *low = x + t * x_token + h * size, *high = low + half;
#pragma omp simd
            for (int64_t d = 0; d < half; d++) {
                float a = LOAD(low[d]), b = LOAD(high[d]);
                low[d] = STORE(LOAD(STORE(a * LOAD(c[d]))) - LOAD(STORE(b * LOAD(s[d]))));
                high[d] = STORE(LOAD(STORE(b * LOAD(c[half + d]))) + LOAD(STORE(a * LOAD(s[half + d]))));
            }
        }
    }
}

/* Copy lines of several heads, [heads, tokens, size] with strides, to cells of [cells, heads, size]. tokens: which, or null
 * for the first num. */
void NAME(keep)(const TYPE *lines, int64_t head, int64_t token, const int64_t *tokens, const int64_t *cells, int64_t num,
                TYPE *store, int64_t heads, int64_t size) {
#pragma omp parallel for schedule(static) if (num > 64)
    for (int64_t i = 0; i < num; i++)
        for (int64_t h = 0; h < heads; h++)
            memcpy(store + (cells[i] * heads + h) * size, lines + h * head + (tokens ? tokens[i] : i) * token,
                   size * sizeof(TYPE));
}

/* out = x + y. */
void NAME(add)(const TYPE *x, const TYPE *y, TYPE *out, int64_t num) {
#pragma omp parallel for schedule(static) if (num > 65536)
    for (int64_t i = 0; i < num; i += LANES)
        NAME(write)(out + i, NAME(read)(x + i, num - i) + NAME(read)(y + i, num - i), num - i);
}

/* Run a kernel with arguments that were written down: see replay in kernels.c. */
static void NAME(call)(enum kernel kernel, const int64_t *a) {
#define IN(i) ((const TYPE *)a[i])
#define OUT(i) ((TYPE *)a[i])
#define WORDS(i) ((const int32_t *)a[i])
#define LONGS(i) ((const int64_t *)a[i])
    switch (kernel) {
    case LORA: NAME(lora)(IN(0), a[1], a[2], OUT(3), a[4], WORDS(5), a[6], LONGS(7), a[8], LONGS(9), a[10]); break;
    case ATTEND:
        NAME(attend)(IN(0), a[1], a[2], IN(3), IN(4), WORDS(5), a[6], WORDS(7), OUT(8), a[9], a[10], a[11], a[12], as_float(a[13]));
        break;
    case RMS_NORM: NAME(rms_norm)(IN(0), a[1], IN(2), OUT(3), a[4], a[5], as_float(a[6])); break;
    case SILU_MUL: NAME(silu_mul)(IN(0), OUT(1), a[2], a[3]); break;
    case ROTATE: NAME(rotate)(OUT(0), a[1], IN(2), IN(3), a[4], a[5], a[6]); break;
    case KEEP: NAME(keep)(IN(0), a[1], a[2], LONGS(3), LONGS(4), a[5], OUT(6), a[7], a[8]); break;
    case ADD: NAME(add)(IN(0), IN(1), OUT(2), a[3]); break;
    case LINEAR: break; /* of one type alone */
    }
#undef IN
#undef OUT
#undef WORDS
#undef LONGS
}
