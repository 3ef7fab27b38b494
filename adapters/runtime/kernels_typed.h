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

/* One query token a row against its own past: softmax(q k / scale) v, block by block (online softmax).
 * q, out: [rows, heads, size]; keys, values: [cells, kv_heads, size]; blocks: [rows, width]; lengths: cells of each row. */
void NAME(attend)(const TYPE *q, int64_t q_row, int64_t q_head, const TYPE *keys, const TYPE *values,
                  const int32_t *blocks, int64_t width, const int32_t *lengths, TYPE *out, int64_t rows,
                  int64_t heads, int64_t kv_heads, int64_t size, float scale) {
    int64_t shared = heads / kv_heads, cell = kv_heads * size;
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = 0; task < rows * kv_heads; task++) {
        int64_t row = task / kv_heads, head = task % kv_heads;
        float query[MAX_SHARED][MAX_HEAD], sums[MAX_SHARED][MAX_HEAD];
        float top[MAX_SHARED], total[MAX_SHARED];
        for (int64_t g = 0; g < shared; g++) {
            const TYPE *source = q + row * q_row + (head * shared + g) * q_head;
            for (int64_t d = 0; d < size; d++) query[g][d] = LOAD(source[d]) * scale;
            memset(sums[g], 0, size * sizeof(float));
            top[g] = -INFINITY;
            total[g] = 0;
        }
        for (int64_t start = 0; start < lengths[row]; start += BLOCK) {
            int64_t base = (int64_t)blocks[row * width + start / BLOCK] * BLOCK * cell + head * size;
            int num = lengths[row] - start < BLOCK ? (int)(lengths[row] - start) : BLOCK;
            float weights[MAX_SHARED][BLOCK], line[MAX_HEAD];
            for (int c = 0; c < num; c++) {
                for (int64_t d = 0; d < size; d++) line[d] = LOAD(keys[base + c * cell + d]);
                for (int64_t g = 0; g < shared; g++) {
                    float dot = 0;
#pragma omp simd reduction(+ : dot)
                    for (int64_t d = 0; d < size; d++) dot += query[g][d] * line[d];
                    weights[g][c] = dot;
                }
            }
            for (int64_t g = 0; g < shared; g++) {
                float high = top[g];
                for (int c = 0; c < num; c++) high = weights[g][c] > high ? weights[g][c] : high;
                float shrunk = top[g] == -INFINITY ? 0.0f : exp_negative(top[g] - high), sum = 0;
                for (int c = num; c < BLOCK; c++) weights[g][c] = -INFINITY;
#pragma omp simd reduction(+ : sum)
                for (int c = 0; c < BLOCK; c++) {
                    float weight = c < num ? exp_negative(weights[g][c] - high) : 0.0f;
                    weights[g][c] = weight;
                    sum += weight;
                }
                total[g] = total[g] * shrunk + sum;
                top[g] = high;
                for (int64_t d = 0; d < size; d++) sums[g][d] *= shrunk;
            }
            for (int c = 0; c < num; c++) {
                for (int64_t d = 0; d < size; d++) line[d] = LOAD(values[base + c * cell + d]);
                for (int64_t g = 0; g < shared; g++)
                    for (int64_t d = 0; d < size; d++) sums[g][d] += weights[g][c] * line[d];
            }
        }
        for (int64_t g = 0; g < shared; g++)
            for (int64_t d = 0; d < size; d++)
                out[(row * heads + head * shared + g) * size + d] = STORE(sums[g][d] / total[g]);
    }
}
