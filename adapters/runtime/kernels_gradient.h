/* What training adds to kernels_typed.h: attention that can drop out and its gradient, gradients of the small parts, and
 * dropout without a mask in memory. kernels.c includes this once a dtype. Gradients are computed in fp32 and rounded once;
 * each number comes from one fixed order of operations, so that a run repeats itself whatever the number of threads. */

/* Copy a row's lines to fp32, [tokens, width]; zeros beyond num and size. */
static void NAME(spread)(const TYPE *lines, int64_t stride, int64_t num, int64_t size, float scale, float *to,
                         int64_t tokens, int64_t width) {
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t d = 0; d < width; d += LANES) {
            vec line = {0};
            if (t < num && d < size) line = NAME(read)(lines + t * stride + d, size - d) * scale;
            *(vec *)(to + t * width + d) = line;
        }
}

/* The same turned about: [width, tokens]. */
static void NAME(spread_turned)(const TYPE *lines, int64_t stride, int64_t num, int64_t size, float *to, int64_t tokens,
                                int64_t width) {
    for (int64_t t = 0; t < tokens; t += LANES)
        for (int64_t d = 0; d < width; d += LANES) {
            vec square[LANES];
            for (int i = 0; i < LANES; i++) {
                square[i] = (vec){0};
                if (t + i < num && d < size) square[i] = NAME(read)(lines + (t + i) * stride + d, size - d);
            }
            turn_vectors(square);
            for (int i = 0; i < LANES; i++) *(vec *)(to + (d + i) * tokens + t) = square[i];
        }
}

/* One row's one head: out = dropout(softmax(q k)) v, and the logarithm of each softmax's sum. at: of the first token's
 * dropout, whose numbers run on by cells. space: of attend_space floats. */
static void NAME(attend_one)(const TYPE *q, int64_t q_token, const TYPE *k, int64_t k_token, const TYPE *v, int64_t v_token,
                             int64_t num, int64_t size, float scale, int64_t causal, int64_t window, struct drop drop,
                             uint32_t line, TYPE *out, int64_t out_token, float *sums, float *space) {
    int64_t cells = round_up(num, LANES), width = round_up(size, LANES);
    float *keys = space, *values = keys + cells * width, *query = values + cells * width;
    float *weights = query + BLOCK * width, *result = weights + BLOCK * cells;
    NAME(spread_turned)(k, k_token, num, size, keys, cells, width);
    NAME(spread)(v, v_token, num, size, 1, values, cells, width);
    for (int64_t first = 0; first < num; first += BLOCK) {
        int64_t count = num - first < BLOCK ? num - first : BLOCK;
        int64_t stop = causal ? round_up(first + count, LANES) : cells;
        NAME(spread)(q + first * q_token, q_token, count, size, scale, query, BLOCK, width);
        multiply(query, width, 1, keys, cells, weights, cells, BLOCK, size, stop, 0);
        for (int64_t i = 0; i < count; i++) {
            float *line_of = weights + i * cells;
            struct seen seen = cells_seen(first + i, num, causal, window);
            sums[first + i] = take_softmax(line_of, seen, stop);
            drop_line(line_of, stop, drop, line + (uint32_t)(first + i));
        }
        multiply(weights, cells, 1, values, width, result, width, BLOCK, stop, width, 0);
        for (int64_t i = 0; i < count; i++)
            for (int64_t d = 0; d < size; d += LANES)
                NAME(write)(out + (first + i) * out_token + d, *(vec *)(result + i * width + d), size - d);
    }
}

/* Gradients of one row's one head: q_grad in its place, those of keys and values in fp32 to be added up over the heads that
 * share them. With S = scale q k, P = softmax(S), D = dropout: dV = D(P)' dO, dP = D(dO V'), dS = P (dP - sum(P dP)). */
static void NAME(attend_one_back)(const TYPE *q, int64_t q_token, const TYPE *k, int64_t k_token, const TYPE *v,
                                  int64_t v_token, int64_t num, int64_t size, float scale, int64_t causal, int64_t window,
                                  struct drop drop, uint32_t line, const float *sums, const TYPE *grad, int64_t grad_token,
                                  TYPE *q_grad, int64_t q_grad_token, float *k_grad, float *v_grad, float *space) {
    int64_t cells = round_up(num, LANES), width = round_up(size, LANES), whole = cells * width;
    float *keys = space, *turned_keys = keys + whole, *turned_values = turned_keys + whole, *k_sums = turned_values + whole;
    float *v_sums = k_sums + whole, *query = v_sums + whole, *above = query + BLOCK * width, *result = above + BLOCK * width;
    float *weights = result + BLOCK * width, *dropped = weights + BLOCK * cells;
    NAME(spread)(k, k_token, num, size, 1, keys, cells, width);
    NAME(spread_turned)(k, k_token, num, size, turned_keys, cells, width);
    NAME(spread_turned)(v, v_token, num, size, turned_values, cells, width);
    memset(k_sums, 0, 2 * whole * sizeof(float));
    for (int64_t first = 0; first < num; first += BLOCK) {
        int64_t count = num - first < BLOCK ? num - first : BLOCK;
        int64_t stop = causal ? round_up(first + count, LANES) : cells;
        NAME(spread)(q + first * q_token, q_token, count, size, scale, query, BLOCK, width);
        NAME(spread)(grad + first * grad_token, grad_token, count, size, 1, above, BLOCK, width);
        multiply(query, width, 1, turned_keys, cells, weights, cells, BLOCK, size, stop, 0);
        multiply(above, width, 1, turned_values, cells, dropped, cells, BLOCK, size, stop, 0);
        for (int64_t i = 0; i < BLOCK; i++) {
            struct seen seen = i < count ? cells_seen(first + i, num, causal, window) : (struct seen){0, 0};
            float sum = i < count ? sums[first + i] : 0;
            softmax_back(weights + i * cells, dropped + i * cells, seen, stop, sum, drop, line + (uint32_t)(first + i));
        } /* weights: D(P), dropped: dS */
        multiply(weights, 1, cells, above, width, v_sums, width, stop, BLOCK, width, 1);
        multiply(dropped, 1, cells, query, width, k_sums, width, stop, BLOCK, width, 1);
        multiply(dropped, cells, 1, keys, width, result, width, BLOCK, stop, width, 0);
        for (int64_t i = 0; i < count; i++)
            for (int64_t d = 0; d < size; d += LANES)
                NAME(write)(q_grad + (first + i) * q_grad_token + d, *(vec *)(result + i * width + d) * scale, size - d);
    }
    for (int64_t t = 0; t < num; t++) {
        memcpy(k_grad + t * size, k_sums + t * width, size * sizeof(float));
        memcpy(v_grad + t * size, v_sums + t * width, size * sizeof(float));
    }
}

/* Attention of whole rows. q, out: [tokens, heads, size]; k, v: [tokens, kv_heads, size]; all with strides but out, sizes
 * contiguous. bounds: [rows + 1] first tokens; longest: tokens of the longest row. sums: [heads, tokens].
 * space: [threads, attend_space]; no more threads than that work. */
void NAME(attend_whole)(const TYPE *q, int64_t q_token, int64_t q_head, const TYPE *k, int64_t k_token, int64_t k_head,
                        const TYPE *v, int64_t v_token, int64_t v_head, const int64_t *bounds, int64_t rows,
                        int64_t longest, TYPE *out, float *sums, float *space, int64_t threads, int64_t heads,
                        int64_t kv_heads, int64_t size, float scale, int64_t causal, int64_t window, int64_t seed, float p) {
    int64_t tokens = bounds[rows], each = attend_space(longest, size);
    struct drop drop = drop_of(seed, p);
#pragma omp parallel for schedule(dynamic) num_threads((int)threads)
    for (int64_t task = rows * heads - 1; task >= 0; task--) { /* rows stand shortest first; the longest begin */
        int64_t first = bounds[task / heads], num = bounds[task / heads + 1] - first, h = task % heads;
        int64_t kv = h * kv_heads / heads;
        NAME(attend_one)(q + first * q_token + h * q_head, q_token, k + first * k_token + kv * k_head, k_token,
                         v + first * v_token + kv * v_head, v_token, num, size, scale, causal, window, drop,
                         (uint32_t)(h * tokens + first), out + (first * heads + h) * size, heads * size,
                         sums + h * tokens + first, space + omp_get_thread_num() * each);
    }
}

/* Gradients of attend_whole, side by side: grads is [tokens, heads + 2 kv_heads, size]. parts: [2, heads, tokens, size]. */
void NAME(attend_whole_back)(const TYPE *q, int64_t q_token, int64_t q_head, const TYPE *k, int64_t k_token, int64_t k_head,
                             const TYPE *v, int64_t v_token, int64_t v_head, const int64_t *bounds, int64_t rows,
                             int64_t longest, const TYPE *grad, const float *sums, TYPE *grads, float *parts, float *space,
                             int64_t threads, int64_t heads, int64_t kv_heads, int64_t size, float scale, int64_t causal,
                             int64_t window, int64_t seed, float p) {
    int64_t tokens = bounds[rows], each = attend_space(longest, size), line = (heads + 2 * kv_heads) * size;
    int64_t shared = heads / kv_heads;
    struct drop drop = drop_of(seed, p);
#pragma omp parallel for schedule(dynamic) num_threads((int)threads)
    for (int64_t task = rows * heads - 1; task >= 0; task--) {
        int64_t first = bounds[task / heads], num = bounds[task / heads + 1] - first, h = task % heads;
        int64_t kv = h / shared, place = h * tokens + first;
        NAME(attend_one_back)(q + first * q_token + h * q_head, q_token, k + first * k_token + kv * k_head, k_token,
                              v + first * v_token + kv * v_head, v_token, num, size, scale, causal, window, drop,
                              (uint32_t)place, sums + place, grad + (first * heads + h) * size, heads * size,
                              grads + first * line + h * size, line, parts + place * size,
                              parts + (heads * tokens + place) * size, space + omp_get_thread_num() * each);
    }
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < 2 * kv_heads; i++) { /* heads of keys, then of values */
            const float *from = parts + ((i < kv_heads ? 0 : heads * tokens) + i % kv_heads * shared * tokens + t) * size;
            for (int64_t d = 0; d < size; d++) {
                float sum = 0;
                for (int64_t s = 0; s < shared; s++) sum += from[s * tokens * size + d];
                grads[t * line + (heads + i) * size + d] = STORE(sum);
            }
        }
}

/* The gradient of rms_norm's input. x, grad, out: [rows, size], contiguous. */
void NAME(rms_norm_back)(const TYPE *x, const TYPE *weight, const TYPE *grad, TYPE *out, int64_t rows, int64_t size,
                         float epsilon) {
#pragma omp parallel for schedule(static) if (rows > 4)
    for (int64_t row = 0; row < rows; row++) {
        const TYPE *source = x + row * size, *above = grad + row * size;
        vec square = {0}, shared = {0};
        for (int64_t d = 0; d < size; d += LANES) {
            vec value = NAME(read)(source + d, size - d);
            square += value * value;
            shared += value * NAME(read)(weight + d, size - d) * NAME(read)(above + d, size - d);
        }
        float factor = 1.0f / sqrtf(sum_of(square) / size + epsilon);
        float mean = sum_of(shared) / size * factor * factor;
        for (int64_t d = 0; d < size; d += LANES) {
            vec wide = NAME(read)(weight + d, size - d) * NAME(read)(above + d, size - d);
            NAME(write)(out + row * size + d, (wide - NAME(read)(source + d, size - d) * mean) * factor, size - d);
        }
    }
}

/* The gradient of silu_mul's input, gate and up side by side. x, out: [rows, 2 * size]; grad: [rows, size]. */
void NAME(silu_mul_back)(const TYPE *x, const TYPE *grad, TYPE *out, int64_t rows, int64_t size) {
#pragma omp parallel for schedule(static) if (rows > 4)
    for (int64_t row = 0; row < rows; row++) {
        const TYPE *gate = x + row * 2 * size, *up = gate + size, *above = grad + row * size;
        TYPE *gate_grad = out + row * 2 * size, *up_grad = gate_grad + size;
        for (int64_t d = 0; d < size; d += LANES) {
            vec g = NAME(read)(gate + d, size - d), sigmoid = sigmoid_of(g), y = NAME(read)(above + d, size - d);
            vec slope = sigmoid * (1.0f + g * (1.0f - sigmoid));
            NAME(write)(gate_grad + d, y * NAME(read)(up + d, size - d) * slope, size - d);
            NAME(write)(up_grad + d, y * g * sigmoid, size - d);
        }
    }
}

/* out = x Phi(x), Gaussian error linear units (Hendrycks and Gimpel, arXiv 1606.08415); with grad, grad times its slope. */
void NAME(gelu)(const TYPE *x, const TYPE *grad, TYPE *out, int64_t num) {
#pragma omp parallel for schedule(static) if (num > 4096)
    for (int64_t i = 0; i < num; i += LANES) {
        vec value = NAME(read)(x + i, num - i), bell = exp_lanes(-0.5f * value * value);
        vec below = normal_below(value, bell);
        vec y = grad ? NAME(read)(grad + i, num - i) * (below + value * bell * 0.3989422804f) : value * below;
        NAME(write)(out + i, y, num - i);
    }
}

/* out = x where it is kept, scaled up; the same seed keeps the same, so that the gradient is this of the gradient. */
void NAME(drop_out)(const TYPE *x, TYPE *out, int64_t num, int64_t seed, float p) {
    struct drop drop = drop_of(seed, p);
    uint32_t start = hash32(drop.seed);
#pragma omp parallel for schedule(static) if (num > 4096)
    for (int64_t i = 0; i < num; i += LANES) {
        NAME(write)(out + i, NAME(read)(x + i, num - i) * factors_of((uint32_t)i, start, drop), num - i);
    }
}
