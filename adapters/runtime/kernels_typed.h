/* The kernels' bodies; kernels.c includes this once a dtype. */

static void NAME(shrink)(const float *x, int num_tokens, int64_t inputs, const TYPE *a, int rank, float *low) {
    for (int r = 0; r < rank; r++) {
        const TYPE *row = a + (int64_t)r * inputs;
        float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        if (num_tokens == 1) {
#pragma omp simd reduction(+ : s0)
            for (int64_t i = 0; i < inputs; i++) s0 += x[i] * LOAD(row[i]);
        } else { /* missing tokens of a short tile are zeros */
#pragma omp simd reduction(+ : s0, s1, s2, s3)
            for (int64_t i = 0; i < inputs; i++) {
                float w = LOAD(row[i]);
                s0 += x[i] * w;
                s1 += x[inputs + i] * w;
                s2 += x[2 * inputs + i] * w;
                s3 += x[3 * inputs + i] * w;
            }
        }
        low[r] = s0;
        low[MAX_RANK + r] = s1;
        low[2 * MAX_RANK + r] = s2;
        low[3 * MAX_RANK + r] = s3;
    }
}

static void NAME(expand)(const float *low, int num_tokens, const TYPE *b, int rank, int64_t outputs,
                         TYPE *out, int64_t out_stride) {
    for (int64_t o = 0; o < outputs; o += CHUNK) {
        int width = outputs - o < CHUNK ? (int)(outputs - o) : CHUNK;
        float sums[TILE][CHUNK] = {{0}};
        for (int r = 0; r < rank; r++) {
            float w[CHUNK] = {0};
            if (width == CHUNK)
                for (int j = 0; j < CHUNK; j++) w[j] = LOAD(b[r * outputs + o + j]);
            else
                for (int j = 0; j < width; j++) w[j] = LOAD(b[r * outputs + o + j]);
            for (int t = 0; t < num_tokens; t++)
#pragma omp simd
                for (int j = 0; j < CHUNK; j++) sums[t][j] += low[t * MAX_RANK + r] * w[j];
        }
        for (int t = 0; t < num_tokens; t++) {
            TYPE *target = out + t * out_stride + o;
            for (int j = 0; j < width; j++) target[j] = STORE(LOAD(target[j]) + sums[t][j]);
        }
    }
}

static inline __attribute__((always_inline)) void NAME(read_line)(const TYPE *source, int size, vec *line) {
    float *target = (float *)line;
    for (int d = 0; d < size; d++) target[d] = LOAD(source[d]);
}

/* out += B (A x) for each tile's tokens, for every module of a group that reads the same x.
 * tiles: [num_tiles, 3] first token, tokens (1 to TILE), adapter. outputs: [num_modules] widths, side by side in out.
 * table: for an adapter, at adapter * table_stride, [num_modules, 3] address of A, address of B, rank (0: none). */
void NAME(lora)(const TYPE *x, int64_t x_stride, int64_t inputs, TYPE *out, int64_t out_stride,
                const int32_t *tiles, int64_t num_tiles, const int64_t *table, int64_t table_stride,
                const int64_t *outputs, int64_t num_modules) {
#pragma omp parallel for schedule(static)
    for (int64_t tile = 0; tile < num_tiles; tile++) {
        int first = tiles[tile * 3], num_tokens = tiles[tile * 3 + 1];
        const int64_t *entry = table + tiles[tile * 3 + 2] * table_stride;
        float xs[TILE * inputs], low[TILE * MAX_RANK];
        for (int t = 0; t < num_tokens; t++)
            for (int64_t i = 0; i < inputs; i++) xs[t * inputs + i] = LOAD(x[(first + t) * x_stride + i]);
        if (num_tokens > 1 && num_tokens < TILE)
            memset(xs + num_tokens * inputs, 0, (TILE - num_tokens) * inputs * sizeof(float));
        TYPE *target = out + first * out_stride;
        for (int64_t m = 0; m < num_modules; target += outputs[m], m++) {
            int rank = (int)entry[m * 3 + 2];
            if (!rank) continue;
            NAME(shrink)(xs, num_tokens, inputs, (const TYPE *)entry[m * 3], rank, low);
            NAME(expand)(low, num_tokens, (const TYPE *)entry[m * 3 + 1], rank, outputs[m], target, out_stride);
        }
    }
}

/* One row's query token against its own past, for the query heads that share one key-value head: softmax(q k) v, block
 * by block (online softmax: Milakov and Gimelshein, arXiv 1805.02867). Inlined, so that a known size unrolls its loops. */
static inline __attribute__((always_inline)) void NAME(attend_head)(
    const TYPE *q, int64_t q_head, const TYPE *keys, const TYPE *values, const int32_t *blocks, int length, TYPE *out,
    int shared, int64_t cell, int size, float scale) {
    int vectors = (size + LANES - 1) / LANES;
    vec query[MAX_SHARED][MAX_HEAD / LANES], sums[MAX_SHARED][MAX_HEAD / LANES], lines[BLOCK][MAX_HEAD / LANES];
    float weights[MAX_SHARED][BLOCK], top[MAX_SHARED], total[MAX_SHARED];
    for (int c = 0; c < BLOCK; c++) lines[c][vectors - 1] = (vec){0}; /* lanes beyond size stay zero */
    for (int g = 0; g < shared; g++) {
        query[g][vectors - 1] = (vec){0};
        for (int d = 0; d < size; d++) query[g][d / LANES][d % LANES] = LOAD(q[g * q_head + d]) * scale;
        for (int v = 0; v < vectors; v++) sums[g][v] = (vec){0};
        top[g] = -INFINITY;
        total[g] = 0;
    }
    for (int start = 0; start < length; start += BLOCK) {
        int64_t base = (int64_t)blocks[start / BLOCK] * BLOCK * cell;
        int num = length - start < BLOCK ? length - start : BLOCK;
        if (start + BLOCK < length) { /* heads lie apart in memory: the processor does not see by itself what comes next */
            int64_t next = (int64_t)blocks[start / BLOCK + 1] * BLOCK * cell;
            for (int c = 0; c < BLOCK; c++)
                for (int d = 0; d < size; d += 64 / (int)sizeof(TYPE)) {
                    __builtin_prefetch(keys + next + c * cell + d);
                    __builtin_prefetch(values + next + c * cell + d);
                }
        }
        for (int c = 0; c < num; c++) NAME(read_line)(keys + base + c * cell, size, lines[c]);
        for (int g = 0; g < shared; g++) {
            for (int c = 0; c < num; c++) {
                vec products = query[g][0] * lines[c][0];
                for (int v = 1; v < vectors; v++) products += query[g][v] * lines[c][v];
                weights[g][c] = sum_of(products);
            }
            float high = top[g], sum = 0;
            for (int c = 0; c < num; c++) high = weights[g][c] > high ? weights[g][c] : high;
            for (int c = num; c < BLOCK; c++) weights[g][c] = -INFINITY; /* weighs nothing */
            float shrunk = exp_negative(top[g] - high);
#pragma omp simd reduction(+ : sum)
            for (int c = 0; c < BLOCK; c++) sum += weights[g][c] = exp_negative(weights[g][c] - high);
            total[g] = total[g] * shrunk + sum;
            top[g] = high;
            for (int v = 0; v < vectors; v++) sums[g][v] *= shrunk;
        }
        for (int c = 0; c < num; c++) NAME(read_line)(values + base + c * cell, size, lines[c]);
        for (int g = 0; g < shared; g++)
            for (int v = 0; v < vectors; v++) {
                vec sum = sums[g][v];
                for (int c = 0; c < num; c++) sum += weights[g][c] * lines[c][v];
                sums[g][v] = sum;
            }
    }
    for (int g = 0; g < shared; g++)
        for (int d = 0; d < size; d++) out[g * size + d] = STORE(sums[g][d / LANES][d % LANES] / total[g]);
}

/* Attention of rows that have one new token each. q: [rows, heads, size] with strides; out: the same, contiguous; keys, values:
 * [cells, kv_heads, size]; blocks: [rows, width]; lengths: cells of each row. */
void NAME(attend)(const TYPE *q, int64_t q_row, int64_t q_head, const TYPE *keys, const TYPE *values,
                  const int32_t *blocks, int64_t width, const int32_t *lengths, TYPE *out, int64_t rows,
                  int64_t heads, int64_t kv_heads, int64_t size, float scale) {
    int shared = (int)(heads / kv_heads);
    int64_t cell = kv_heads * size;
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = 0; task < rows * kv_heads; task++) {
        int64_t row = task / kv_heads, head = task % kv_heads;
        const TYPE *query = q + row * q_row + head * shared * q_head;
        const TYPE *key = keys + head * size, *value = values + head * size;
        TYPE *target = out + (row * heads + head * shared) * size;
        const int32_t *own = blocks + row * width;
        if (size == 64 && shared == 3)
            NAME(attend_head)(query, q_head, key, value, own, lengths[row], target, 3, cell, 64, scale);
        else if (size == 64)
            NAME(attend_head)(query, q_head, key, value, own, lengths[row], target, shared, cell, 64, scale);
        else if (size == 128)
            NAME(attend_head)(query, q_head, key, value, own, lengths[row], target, shared, cell, 128, scale);
        else
            NAME(attend_head)(query, q_head, key, value, own, lengths[row], target, shared, cell, (int)size, scale);
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
#pragma omp simd
        for (int64_t d = 0; d < size; d++) {
            float g = LOAD(gate[d]), e = exp_negative(-fabsf(g));
            float silu = g * (g >= 0 ? 1.0f : e) / (1.0f + e);
            out[row * size + d] = STORE(LOAD(STORE(silu)) * LOAD(up[d]));
        }
    }
}
