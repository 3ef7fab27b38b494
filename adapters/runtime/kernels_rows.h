/* Parts of kernels_gradient.h that are the same for every dtype: small products, softmax and dropout of one line of scores. */
#include <omp.h>

#define LINES (LANES == 16 ? 8 : 4) /* lines of a product held in registers at once, two vectors each */

static inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/* Floats that attend_one and attend_one_back need. */
int64_t attend_space(int64_t longest, int64_t size) {
    int64_t cells = round_up(longest, LANES), width = round_up(size, LANES);
    return 5 * cells * width + 3 * BLOCK * width + 2 * BLOCK * cells;
}

/* One or two vectors of columns of multiply. Inlined, so that their number is known. */
static inline __attribute__((always_inline)) void multiply_columns(int vectors, const float *a, int64_t a_row, int64_t a_column,
                                                                   const float *b, int64_t b_row, float *to, int64_t to_row,
                                                                   int64_t rows, int64_t inner, int add) {
    for (int64_t r = 0; r < rows; r += LINES) {
        vec sums[LINES][2];
        for (int i = 0; i < LINES; i++)
            for (int j = 0; j < vectors; j++) sums[i][j] = add ? *(vec *)(to + (r + i) * to_row + j * LANES) : (vec){0};
        const float *left = a + r * a_row;
        for (int64_t k = 0; k < inner; k++)
            for (int i = 0; i < LINES; i++) {
                float weight = left[i * a_row + k * a_column];
                for (int j = 0; j < vectors; j++) sums[i][j] += weight * *(const vec *)(b + k * b_row + j * LANES);
            }
        for (int i = 0; i < LINES; i++)
            for (int j = 0; j < vectors; j++) *(vec *)(to + (r + i) * to_row + j * LANES) = sums[i][j];
    }
}

/* to (+)= a b in fp32. a: [rows, inner] with strides, so that it may stand turned; b: [inner, columns]; rows are a multiple
 * of LINES, columns of LANES. */
static void multiply(const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row, float *to,
                     int64_t to_row, int64_t rows, int64_t inner, int64_t columns, int add) {
    int64_t c = 0;
    for (; c + 2 * LANES <= columns; c += 2 * LANES)
        multiply_columns(2, a, a_row, a_column, b + c, b_row, to + c, to_row, rows, inner, add);
    if (c < columns) multiply_columns(1, a, a_row, a_column, b + c, b_row, to + c, to_row, rows, inner, add);
}

/* Turn as many vectors about as a vector has lanes: lane j of vector i becomes lane i of vector j. Halves change places, then
 * quarters, and so on. */
#define TURN(step, FRONT, BACK)                                   \
    for (int i = 0; i < LANES; i += i % step == step - 1 ? step + 1 : 1) { \
        vec a = x[i], b = x[i + step];                            \
        x[i] = FRONT(a, b);                                       \
        x[i + step] = BACK(a, b);                                 \
    }
static inline __attribute__((always_inline)) void turn_vectors(vec *x) {
#if LANES == 16
    TURN(8, FRONT_8, BACK_8)
#endif
#if LANES >= 8
    TURN(4, FRONT_4, BACK_4)
#endif
    TURN(2, FRONT_2, BACK_2)
    TURN(1, FRONT_1, BACK_1)
}
#undef TURN

/* The cells that a token sees: [first, last). */
struct seen {
    int64_t first, last;
};

static inline struct seen cells_seen(int64_t token, int64_t num, int64_t causal, int64_t window) {
    int64_t first = token - window + 1, last = token + window;
    if (causal) last = token + 1;
    return (struct seen){first > 0 ? first : 0, last < num ? last : num};
}

/* Which of a vector's cells, the first of which is given, are seen. */
static inline lanes is_seen(struct seen seen, int64_t first) {
    lanes cells = (lanes){COUNT} + (int32_t)first;
    return (cells >= (int32_t)seen.first) & (cells < (int32_t)seen.last);
}

/* Scores of one token into their softmax; zeros where it does not see. Returns log(sum(exp(scores))). Whole vectors, for
 * rows are often shorter than one; stop is a multiple of LANES. */
static inline float take_softmax(float *scores, struct seen seen, int64_t stop) {
    vec most = (vec){0} - INFINITY, sum = {0};
    for (int64_t c = 0; c < stop; c += LANES) {
        vec score = *(vec *)(scores + c);
        most = choose(is_seen(seen, c) & (score > most), score, most);
    }
    float top = largest_of(most);
    for (int64_t c = 0; c < stop; c += LANES) {
        vec weight = exp_lanes(*(vec *)(scores + c) - top);
        sum += *(vec *)(scores + c) = choose(is_seen(seen, c), weight, (vec){0});
    }
    float total = sum_of(sum), factor = 1.0f / total;
    for (int64_t c = 0; c < stop; c += LANES) *(vec *)(scores + c) *= factor;
    return top + logf(total);
}

/* Dropout: numbers drawn below a limit are dropped, the others scaled up. */
struct drop {
    uint32_t seed, below;
    float factor;
};

static inline struct drop drop_of(int64_t seed, float p) {
    if (p >= 1) return (struct drop){(uint32_t)seed, UINT32_MAX, 0};
    return (struct drop){(uint32_t)seed, (uint32_t)(p * 4294967296.0), 1.0f / (1.0f - p)};
}

/* A number for a place: a hash, so that it can be drawn again (lowbias32: Wellons, github.com/skeeto/hash-prospector). */
static inline uint32_t hash32(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

/* What a vector's numbers are multiplied by, the first of which has a place. */
static inline vec factors_of(uint32_t place, uint32_t start, struct drop drop) {
    places x = ((places){COUNT} + place) ^ start;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    x = x ^ (x >> 16);
    return choose((lanes)(x < drop.below), (vec){0}, (vec){0} + drop.factor);
}

/* num is a multiple of LANES. */
static inline void drop_line(float *weights, int64_t num, struct drop drop, uint32_t line) {
    if (!drop.below) return;
    uint32_t start = hash32(line ^ drop.seed);
    for (int64_t c = 0; c < num; c += LANES) *(vec *)(weights + c) *= factors_of((uint32_t)c, start, drop);
}

/* scores: S; dropped: dO V'. Leaves D(P) and dS = P (D(dO V') - sum(P D(dO V'))). */
static inline void softmax_back(float *scores, float *dropped, struct seen seen, int64_t stop, float log_sum,
                                struct drop drop, uint32_t line) {
    vec sum = {0};
    drop_line(dropped, stop, drop, line);
    for (int64_t c = 0; c < stop; c += LANES) {
        lanes here = is_seen(seen, c);
        vec weight = choose(here, exp_lanes(*(vec *)(scores + c) - log_sum), (vec){0});
        sum += weight * choose(here, *(vec *)(dropped + c), (vec){0});
        *(vec *)(scores + c) = weight;
    }
    float shared = sum_of(sum);
    for (int64_t c = 0; c < stop; c += LANES) {
        vec slope = *(vec *)(scores + c) * (*(vec *)(dropped + c) - shared);
        *(vec *)(dropped + c) = choose(is_seen(seen, c), slope, (vec){0});
    }
    drop_line(scores, stop, drop, line);
}

/* How much of the standard normal distribution is below x, to 1.5e-7 (Abramowitz and Stegun 7.1.26); bell: exp(-x^2 / 2). */
static inline vec normal_below(vec x, vec bell) {
    vec t = 1.0f / (1.0f + 0.3275911f * 0.7071067812f * size_of(x));
    vec p = 1.061405429f * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vec above = 0.5f * p * t * bell;
    return choose(x < 0, above, 1.0f - above);
}
