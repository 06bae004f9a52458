// Slide Attention on a CPU, forward and backward, in float32.
//
// With taps o at offsets (o / K - K / 2, o % K - K / 2), and one more tap whose neighbour is the
// constant 1 and whose weight is the bias, key side and value side are the same form, linear in
// each of f, g, a and w:
//
//     form(f, g, a, w) = sum_{x, c, p, o} w[c, o, p] f(x)[c] g(x + o)[c] a_p(x)
//
//     logits = d form(query, key, ., key_weight) / da          attention = softmax over p
//     output = d form(., value, attention, value_weight) / df
//
// and every gradient is again a derivative of the form. Three loops do all the work: `score` is the
// derivative by a, `mix` by f or g, `weight_gradient` by w.
//
// Tensors are channels-last, but the loops run over neighbouring pixels, so that each weight is
// broadcast once for several vectors of pixels and sums stay in registers. An image is cut into
// tiles which, with their halo, are transposed into planes that fit the L2 cache. Planes are flat:
// a step right is 1, a step down `Tile::stride`, so a tap is one constant offset.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));

inline Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }
inline Vec load_first(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
  Vec v = {};
  memcpy(&v, p, n * sizeof(float));
  return v;
}
inline void store_first(float* p, Vec v, int64_t n) {
  if (n >= kLanes) return store(p, v);
  memcpy(p, &v, n * sizeof(float));
}

#if defined(__AVX512F__)
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX__)
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVec{__VA_ARGS__})
#endif

// The first, or last, halves of a and b, their elements alternating.
inline Vec interleave_low(Vec a, Vec b) { return SHUFFLE(a, b, LOW); }
inline Vec interleave_high(Vec a, Vec b) { return SHUFFLE(a, b, HIGH); }

inline void transpose(Vec* m) {
  Vec t[kLanes];
  for (int step = 1; step < kLanes; step *= 2) {
    for (int i = 0; i < kLanes / 2; ++i) {
      t[2 * i] = interleave_low(m[i], m[i + kLanes / 2]);
      t[2 * i + 1] = interleave_high(m[i], m[i + kLanes / 2]);
    }
    for (int i = 0; i < kLanes; ++i) m[i] = t[i];
  }
}

inline float sum_lanes(Vec v) {
  for (int n = 1; n < kLanes; n *= 2) v = interleave_low(v, v) + interleave_high(v, v);
  return v[0];
}

// exp for x <= 0, relative error below 2e-7: 2^n times the Taylor polynomial on |r| <= ln(2) / 2.
inline Vec exp_nonpositive(Vec x) {
  const Vec lowest = Vec{} - 87.0f;
  x = x < lowest ? lowest : x;
  const Vec shifter = Vec{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = x * 1.44269504f + shifter;
  const Vec n = shifted - shifter;
  const Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec y = r * (1 / 720.0f) + 1 / 120.0f;
  y = y * r + 1 / 24.0f;
  y = y * r + 1 / 6.0f;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  const IntVec exponent = ((IntVec)shifted - (IntVec)shifter + 127) << 23;
  return y * (Vec)exponent;
}

// Channels are contiguous; strides are of batch, height, width and head.
struct Tensor {
  float* data;
  int64_t strides[4];
};

// Mirrored by _Arguments in cpu_kernel.py.
struct Arguments {
  int64_t kernel_size, batch, height, width, heads, channels, threads;
  Tensor query, key, value, output;  // backward: output is the gradient of the output
  float *key_weight, *value_weight;  // (heads, channels, taps, K * K) and (channels, taps, K * K)
  float* attention;                  // (batch, heads, K * K, height, width); forward: may be null
  // Backward only. The gradients of the weights are summed in `chunks` chunks of tiles a head,
  // whatever the number of threads, and start as zeros: (heads, chunks, channels, taps, K * K).
  Tensor query_grad, key_grad, value_grad;
  float* logits_grad;  // as attention
  int64_t chunks;
  float *key_weight_grad, *value_weight_grad;
};

constexpr int64_t kLine = 16;  // floats in a cache line

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One tile of one head. Pixel (row, column) of the tile is element
// origin + row * stride + column of each plane.
template <int K>
struct Tile {
  static constexpr int64_t kHalo = K / 2;
  static constexpr int64_t kMaxRows = 8, kMaxColumns = 64;
  const Arguments& image;
  int64_t rows, columns, tile_rows, tile_columns;  // pixels of a tile; tiles of the image
  int64_t stride, origin, plane;                   // plane: elements, a plane's elements
  int64_t length;                                  // elements from the first pixel to the last
  int64_t offsets[K * K];
  int64_t batch, head, y, x;  // of the tile at hand

  explicit Tile(const Arguments& arguments) : image(arguments) {
    rows = divide_up(image.height, divide_up(image.height, kMaxRows));
    columns = divide_up(image.width, divide_up(image.width, kMaxColumns));
    tile_rows = divide_up(image.height, rows);
    tile_columns = divide_up(image.width, columns);
    stride = columns + 2 * kHalo;
    origin = divide_up(kHalo * stride + kHalo, kLine) * kLine;
    length = (rows - 1) * stride + columns;
    // Room for two vectors past the end, as the loops take whole steps. An odd number of cache
    // lines keeps the planes of one pixel in different sets of the L1 cache.
    plane = (divide_up(2 * origin + length + 2 * kLanes, kLine) | 1) * kLine;
    for (int o = 0; o < K * K; ++o) offsets[o] = (o / K - kHalo) * stride + o % K - kHalo;
  }

  int64_t per_head() const { return image.batch * tile_rows * tile_columns; }
  int64_t count() const { return image.heads * per_head(); }

  void select(int64_t head_, int64_t index) {
    head = head_;
    x = index % tile_columns * columns;
    y = index / tile_columns % tile_rows * rows;
    batch = index / tile_columns / tile_rows;
  }

  float* pixel(const Tensor& tensor, int64_t row, int64_t column) const {
    const int64_t* strides = tensor.strides;
    return tensor.data + batch * strides[0] + (y + row) * strides[1] + (x + column) * strides[2] +
           head * strides[3];
  }

  bool has_row(int64_t row) const { return y + row >= 0 && y + row < image.height; }
  bool has_column(int64_t column) const { return x + column >= 0 && x + column < image.width; }

  // Transposes the tile, with `halo` pixels around it, into one plane a channel; zero outside the
  // image. Neighbouring pixels lie too far apart in memory for the processor to fetch them ahead of
  // time by itself, so each row asks for the next.
  void load_pixels(const Tensor& source, int64_t halo, float* planes) const {
    for (int64_t row = -halo; row < rows + halo; ++row) {
      for (int64_t column = -halo; column < columns + halo; column += kLanes) {
        for (int64_t c = 0; c < image.channels; c += kLanes) {
          Vec block[kLanes];
          for (int i = 0; i < kLanes; ++i) {
            const float* from = pixel(source, row, column + i) + c;
            const bool inside = has_row(row) && has_column(column + i);
            block[i] = inside ? load_first(from, image.channels - c) : Vec{};
            __builtin_prefetch(from + source.strides[1], 0, 2);
          }
          transpose(block);
          float* to = planes + c * plane + origin + row * stride + column;
          for (int i = 0; i < kLanes && c + i < image.channels; ++i)
            store(to + i * plane, block[i]);
        }
      }
    }
  }

  void save_pixels(const float* planes, const Tensor& target) const {
    for (int64_t row = 0; row < rows && has_row(row); ++row) {
      for (int64_t column = 0; column < columns; column += kLanes) {
        for (int64_t c = 0; c < image.channels; c += kLanes) {
          const float* from = planes + c * plane + origin + row * stride + column;
          Vec block[kLanes];
          for (int i = 0; i < kLanes; ++i)
            block[i] = c + i < image.channels ? load(from + i * plane) : Vec{};
          transpose(block);
          for (int i = 0; i < kLanes && column + i < columns && has_column(column + i); ++i) {
            float* to = pixel(target, row, column + i) + c;
            store_first(to, block[i], image.channels - c);
            __builtin_prefetch(to + target.strides[1], 1);
          }
        }
      }
    }
  }

  float* map_row(float* maps, int64_t p, int64_t row) const {
    return maps +
           (((batch * image.heads + head) * K * K + p) * image.height + y + row) * image.width;
  }

  // The K * K maps of this head are planes already, so only copied; zero outside the image and
  // outside the tile with its halo.
  void load_maps(float* maps, int64_t halo, float* planes) const {
    memset(planes, 0, K * K * plane * sizeof(float));
    const int64_t left = std::max<int64_t>(x - halo, 0);
    const int64_t right = std::min(x + columns + halo, image.width);
    for (int p = 0; p < K * K; ++p)
      for (int64_t row = -halo; row < rows + halo; ++row)
        if (has_row(row))
          memcpy(planes + p * plane + origin + row * stride + left - x,
                 map_row(maps, p, row) + left, (right - left) * sizeof(float));
  }

  void save_maps(const float* planes, float* maps) const {
    const int64_t count = std::min(columns, image.width - x);
    for (int p = 0; p < K * K; ++p)
      for (int64_t row = 0; row < rows && has_row(row); ++row)
        memcpy(map_row(maps, p, row) + x, planes + p * plane + origin + row * stride,
               count * sizeof(float));
  }
};

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVectors = 2;  // pixels a step, in vectors: their sums fill the 32 registers
#else
constexpr int kVectors = 1;
#endif
constexpr int kStep = kVectors * kLanes;

// The loops. Weights are (channels, taps, K * K), taps = K * K + 1 with the bias last.
template <int K>
struct Loops {
  static constexpr int kMaps = K * K;
  static constexpr int kTaps = K * K + 1;
  static constexpr int kGroup = K == 3 ? 9 : K;  // maps whose sums are in registers at a time
  const Tile<K>& tile;

  static Vec neighbour(const float* g, const int64_t* offsets, int o) {
    return o < kMaps ? load(g + offsets[o]) : Vec{} + 1.0f;
  }

  // maps[p](x) = sum_{c, o} w[c, o, p] f(x)[c] g(x + o)[c]
  void score(const float* f, const float* g, const float* w, float* maps) const {
    for (int64_t x = 0; x < tile.length; x += kStep) {
      for (int first = 0; first < kMaps; first += kGroup) {
        Vec sums[kVectors][kGroup] = {};
        for (int64_t c = 0; c < tile.image.channels; ++c) {
          const float* f_c = f + c * tile.plane + tile.origin + x;
          const float* g_c = g + c * tile.plane + tile.origin + x;
          const float* w_c = w + c * kTaps * kMaps + first;
          Vec centre[kVectors];
          for (int v = 0; v < kVectors; ++v) centre[v] = load(f_c + v * kLanes);
          for (int o = 0; o < kTaps; ++o, w_c += kMaps) {
            for (int v = 0; v < kVectors; ++v) {
              const Vec product = centre[v] * neighbour(g_c + v * kLanes, tile.offsets, o);
              for (int p = 0; p < kGroup; ++p) sums[v][p] += w_c[p] * product;
            }
          }
        }
        for (int v = 0; v < kVectors; ++v)
          for (int p = 0; p < kGroup; ++p)
            store(maps + (first + p) * tile.plane + tile.origin + x + v * kLanes, sums[v][p]);
      }
    }
  }

  // out(x)[c] = sum_{p, o} w[c, o, p] a_p(x) g(x + o)[c]; or, transposed, where x is the neighbour,
  // sum_{p, o} w[c, o, p] a_p(x - o) g(x - o)[c].
  template <bool transposed>
  void mix(const float* maps, const float* g, const float* w, float* out) const {
    for (int64_t x = 0; x < tile.length; x += kStep) {
      const int64_t at = tile.origin + x;
      for (int o = 0; o < (transposed ? kMaps : kTaps); ++o) {
        const int64_t offset = o < kMaps ? tile.offsets[o] : 0;
        Vec a[kVectors][kMaps];
        for (int v = 0; v < kVectors; ++v)
          for (int p = 0; p < kMaps; ++p)
            a[v][p] = load(maps + p * tile.plane + at + v * kLanes - (transposed ? offset : 0));
        for (int64_t c = 0; c < tile.image.channels; ++c) {
          const float* w_o = w + (c * kTaps + o) * kMaps;
          const float* g_c = g + c * tile.plane + at + (transposed ? -offset : offset);
          float* out_c = out + c * tile.plane + at;
          for (int v = 0; v < kVectors; ++v) {
            Vec coefficient = w_o[0] * a[v][0];
            for (int p = 1; p < kMaps; ++p) coefficient += w_o[p] * a[v][p];
            const Vec other = o < kMaps ? load(g_c + v * kLanes) : Vec{} + 1.0f;
            const Vec before = o ? load(out_c + v * kLanes) : Vec{};
            store(out_c + v * kLanes, before + coefficient * other);
          }
        }
      }
    }
  }

  // w[c, o, p] += sum_x a_p(x) f(x)[c] g(x + o)[c], two taps at a time.
  void weight_gradient(const float* maps, const float* f, const float* g, float* w) const {
    for (int64_t c = 0; c < tile.image.channels; ++c) {
      const float* f_c = f + c * tile.plane + tile.origin;
      const float* g_c = g + c * tile.plane + tile.origin;
      for (int o = 0; o < kTaps; o += 2) {
        for (int first = 0; first < kMaps; first += kGroup) {
          Vec sums[2][kGroup] = {};
          const float* a = maps + first * tile.plane + tile.origin;
          for (int64_t x = 0; x < tile.length; x += kLanes) {
            const Vec centre = load(f_c + x);
            const Vec products[2] = {centre * neighbour(g_c + x, tile.offsets, o),
                                     centre * neighbour(g_c + x, tile.offsets, o + 1)};
            for (int p = 0; p < kGroup; ++p) {
              const Vec a_p = load(a + p * tile.plane + x);
              sums[0][p] += products[0] * a_p;
              sums[1][p] += products[1] * a_p;
            }
          }
          for (int i = 0; i < 2; ++i)
            for (int p = 0; p < kGroup; ++p)
              w[(c * kTaps + o + i) * kMaps + first + p] += sum_lanes(sums[i][p]);
        }
      }
    }
  }

  void softmax(float* maps) const {
    for (int64_t x = tile.origin; x < tile.origin + tile.length; x += kLanes) {
      Vec largest = load(maps + x);
      for (int p = 1; p < kMaps; ++p) {
        const Vec other = load(maps + p * tile.plane + x);
        largest = other > largest ? other : largest;
      }
      Vec sum = {};
      for (int p = 0; p < kMaps; ++p) {
        const Vec e = exp_nonpositive(load(maps + p * tile.plane + x) - largest);
        store(maps + p * tile.plane + x, e);
        sum += e;
      }
      const Vec inverse = 1.0f / sum;
      for (int p = 0; p < kMaps; ++p)
        store(maps + p * tile.plane + x, load(maps + p * tile.plane + x) * inverse);
    }
  }

  // From the gradient of the attention maps to that of the logits, in place.
  void softmax_backward(const float* maps, float* gradients) const {
    for (int64_t x = tile.origin; x < tile.origin + tile.length; x += kLanes) {
      Vec sum = {};
      for (int p = 0; p < kMaps; ++p)
        sum += load(maps + p * tile.plane + x) * load(gradients + p * tile.plane + x);
      for (int p = 0; p < kMaps; ++p) {
        float* gradient = gradients + p * tile.plane + x;
        store(gradient, load(maps + p * tile.plane + x) * (load(gradient) - sum));
      }
    }
  }
};

// Planes of one thread, zeros at first: the loops also read between and behind the pixels, and what
// they find must be finite.
class Planes {
 public:
  explicit Planes(int64_t size) : lines_(new Line[size / kLine]()), next_(lines_[0].elements) {}
  float* take(int64_t size) { return (next_ += size) - size; }

 private:
  struct alignas(kLine * sizeof(float)) Line {
    float elements[kLine];
  };
  std::unique_ptr<Line[]> lines_;
  float* next_;
};

template <int K>
void forward(const Arguments& arguments) {
  Tile<K> tile(arguments);
#pragma omp parallel num_threads(std::min(arguments.threads, tile.count())) firstprivate(tile)
  {
    const Loops<K> loops{tile};
    const int64_t weight_size = arguments.channels * loops.kTaps * K * K;
    const int64_t size = arguments.channels * tile.plane, maps_size = K * K * tile.plane;
    Planes planes(3 * size + maps_size);
    float *query = planes.take(size), *key = planes.take(size), *value = planes.take(size);
    float *maps = planes.take(maps_size), *output = query;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < tile.count(); ++i) {
      tile.select(i % arguments.heads, i / arguments.heads);
      tile.load_pixels(arguments.query, 0, query);
      tile.load_pixels(arguments.key, tile.kHalo, key);
      tile.load_pixels(arguments.value, tile.kHalo, value);
      loops.score(query, key, arguments.key_weight + tile.head * weight_size, maps);
      loops.softmax(maps);
      loops.template mix<false>(maps, value, arguments.value_weight, output);
      tile.save_pixels(output, arguments.output);
      if (arguments.attention) tile.save_maps(maps, arguments.attention);
    }
  }
}

template <int K>
void backward(const Arguments& arguments) {
  Tile<K> tile(arguments);
#pragma omp parallel num_threads(std::min(arguments.threads, tile.count())) firstprivate(tile)
  {
    const Loops<K> loops{tile};
    const int64_t weight_size = arguments.channels * loops.kTaps * K * K;
    const int64_t size = arguments.channels * tile.plane, maps_size = K * K * tile.plane;
    Planes planes(5 * size + 2 * maps_size);
    float *query = planes.take(size), *key = planes.take(size), *value = planes.take(size);
    float *output = planes.take(size), *gradient = planes.take(size);
    float *maps = planes.take(maps_size), *logits = planes.take(maps_size);

#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < arguments.chunks * arguments.heads; ++i) {
      const int64_t head = i % arguments.heads, chunk = i / arguments.heads;
      const int64_t weight = (head * arguments.chunks + chunk) * weight_size;
      const int64_t end = tile.per_head() * (chunk + 1) / arguments.chunks;
      for (int64_t j = tile.per_head() * chunk / arguments.chunks; j < end; ++j) {
        tile.select(head, j);
        tile.load_pixels(arguments.output, 0, output);
        tile.load_pixels(arguments.value, tile.kHalo, value);
        tile.load_maps(arguments.attention, 0, maps);
        loops.score(output, value, arguments.value_weight, logits);
        loops.softmax_backward(maps, logits);
        tile.save_maps(logits, arguments.logits_grad);
        loops.weight_gradient(maps, output, value, arguments.value_weight_grad + weight);

        tile.load_pixels(arguments.query, 0, query);
        tile.load_pixels(arguments.key, tile.kHalo, key);
        loops.weight_gradient(logits, query, key, arguments.key_weight_grad + weight);
        loops.template mix<false>(logits, key, arguments.key_weight + head * weight_size, gradient);
        tile.save_pixels(gradient, arguments.query_grad);
      }
    }

    // A key or value gathers from the queries around it, those of neighbouring tiles included.
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < tile.count(); ++i) {
      tile.select(i % arguments.heads, i / arguments.heads);
      tile.load_pixels(arguments.query, tile.kHalo, query);
      tile.load_maps(arguments.logits_grad, tile.kHalo, logits);
      loops.template mix<true>(logits, query, arguments.key_weight + tile.head * weight_size,
                               gradient);
      tile.save_pixels(gradient, arguments.key_grad);
      tile.load_pixels(arguments.output, tile.kHalo, output);
      tile.load_maps(arguments.attention, tile.kHalo, maps);
      loops.template mix<true>(maps, output, arguments.value_weight, gradient);
      tile.save_pixels(gradient, arguments.value_grad);
    }
  }
}

}  // namespace

#define FOR_KERNEL_SIZE(function)              \
  switch (arguments->kernel_size) {            \
    case 3: return function<3>(*arguments);    \
    case 5: return function<5>(*arguments);    \
    case 7: return function<7>(*arguments);    \
  }

extern "C" void slide_attention_forward(const Arguments* arguments) { FOR_KERNEL_SIZE(forward) }
extern "C" void slide_attention_backward(const Arguments* arguments) { FOR_KERNEL_SIZE(backward) }
