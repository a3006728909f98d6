// A stand-in for cuDNN where there is none: what halfseg calls of it, computed on the CPU, one sum after the other. On a
// simulated GPU device memory is the host's, so that it shows whether operands, sizes and strides are told rightly. It
// shows nothing of cuDNN's own kernels.
//
//   cc -O2 -fPIC -shared -o libcudnn.so.9 cudnn-stand-in.c
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, HALF = 2, BFLOAT16 = 9, DETERMINISTIC = 1 };

typedef struct { int type, size[4], stride[4]; } Tensor;
typedef struct { int type, size[4]; } Filter;
typedef struct { int pad[2], stride[2], dilation[2]; } Convolution;
// Forward passes and weight gradients have the same.
typedef struct { int algorithm, status; float time; size_t memory; int determinism, math, reserved[3]; } Performance;

static int forward, backward;
__attribute__((destructor)) static void say(void) {
  fprintf(stderr, "cuDNN stand-in: %d convolutions and %d weight gradients\n", forward, backward);
}

size_t cudnnGetVersion(void) { return 91000; }
int cudnnCreate(void **handle) { *handle = malloc(1); return SUCCESS; }
int cudnnDestroy(void *handle) { free(handle); return SUCCESS; }
int cudnnSetStream(void *handle, void *stream) { (void)handle, (void)stream; return SUCCESS; }
int cudnnCreateTensorDescriptor(void **made) { *made = calloc(1, sizeof(Tensor)); return SUCCESS; }
int cudnnCreateFilterDescriptor(void **made) { *made = calloc(1, sizeof(Filter)); return SUCCESS; }
int cudnnCreateConvolutionDescriptor(void **made) { *made = calloc(1, sizeof(Convolution)); return SUCCESS; }
int cudnnDestroyTensorDescriptor(void *made) { free(made); return SUCCESS; }
int cudnnDestroyFilterDescriptor(void *made) { free(made); return SUCCESS; }
int cudnnDestroyConvolutionDescriptor(void *made) { free(made); return SUCCESS; }
int cudnnSetConvolutionMathType(void *made, int type) { (void)made, (void)type; return SUCCESS; }

int cudnnSetTensor4dDescriptorEx(Tensor *to, int type, int n, int c, int h, int w, int ns, int cs, int hs, int ws) {
  *to = (Tensor){type, {n, c, h, w}, {ns, cs, hs, ws}};
  return SUCCESS;
}
int cudnnSetFilter4dDescriptor(Filter *to, int type, int order, int k, int c, int h, int w) {
  if (order != 1) return 3000; // Only channels last.
  *to = (Filter){type, {k, c, h, w}};
  return SUCCESS;
}
int cudnnSetConvolution2dDescriptor(Convolution *to, int ph, int pw, int sh, int sw, int dh, int dw, int mode, int type) {
  if (mode != 1 || type != 0) return 3000; // Cross-correlation, summed in f32.
  *to = (Convolution){{ph, pw}, {sh, sw}, {dh, dw}};
  return SUCCESS;
}

// The first one is refused by whoever wants the same bits each time; the second wants some memory.
static int offer(int wanted, int *count, Performance *found) {
  memset(found, 0, wanted * sizeof *found);
  found[1] = (Performance){.algorithm = 1, .memory = 64, .determinism = DETERMINISTIC};
  *count = 2;
  return SUCCESS;
}
int cudnnGetConvolutionForwardAlgorithm_v7(void *handle, Tensor *x, Filter *w, Convolution *by, Tensor *y, int wanted,
                                           int *count, Performance *found) {
  (void)handle, (void)x, (void)w, (void)by, (void)y;
  return offer(wanted, count, found);
}
int cudnnGetConvolutionBackwardFilterAlgorithm_v7(void *handle, Tensor *x, Tensor *y, Convolution *by, Filter *w,
                                                  int wanted, int *count, Performance *found) {
  (void)handle, (void)x, (void)w, (void)by, (void)y;
  return offer(wanted, count, found);
}
int cudnnGetConvolutionForwardWorkspaceSize(void *handle, Tensor *x, Filter *w, Convolution *by, Tensor *y, int algorithm,
                                            size_t *size) {
  (void)handle, (void)x, (void)w, (void)by, (void)y;
  *size = 64;
  return algorithm == 1 ? SUCCESS : 3000;
}
int cudnnGetConvolutionBackwardFilterWorkspaceSize(void *handle, Tensor *x, Tensor *y, Convolution *by, Filter *w,
                                                   int algorithm, size_t *size) {
  (void)handle, (void)x, (void)w, (void)by, (void)y;
  *size = 64;
  return algorithm == 1 ? SUCCESS : 3000;
}

static float read(int type, const void *from, long at) {
  uint16_t bits = ((const uint16_t *)from)[at];
  float value;
  if (type == BFLOAT16) {
    uint32_t wide = (uint32_t)bits << 16;
    memcpy(&value, &wide, 4);
    return value;
  }
  _Float16 half;
  memcpy(&half, &bits, 2);
  return half;
}
static void write(int type, void *to, long at, float value) {
  uint16_t bits;
  if (type == BFLOAT16) {
    uint32_t wide;
    memcpy(&wide, &value, 4);
    bits = value != value ? 0x7fc0 : (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
  } else {
    _Float16 half = value;
    memcpy(&bits, &half, 2);
  }
  ((uint16_t *)to)[at] = bits;
}
static long place(const Tensor *of, int n, int c, int h, int w) {
  return (long)n * of->stride[0] + (long)c * of->stride[1] + (long)h * of->stride[2] + (long)w * of->stride[3];
}

// Whether a tap of an output lies in the map, and where.
static int inside(const Convolution *by, const Tensor *x, int i, int j, int a, int b, int *h, int *v) {
  *h = i * by->stride[0] - by->pad[0] + a * by->dilation[0];
  *v = j * by->stride[1] - by->pad[1] + b * by->dilation[1];
  return *h >= 0 && *h < x->size[2] && *v >= 0 && *v < x->size[3];
}

int cudnnConvolutionForward(void *handle, const float *alpha, Tensor *x, const void *from, Filter *w, const void *weight,
                            Convolution *by, int algorithm, void *room, size_t size, const float *beta, Tensor *y,
                            void *to) {
  (void)handle;
  if (*alpha != 1 || *beta != 0 || algorithm != 1 || size != 64) return 2000;
  memset(room, 0, size);
  forward++;
  int channels = w->size[1], rows = w->size[2], columns = w->size[3], h, v;
  for (int n = 0; n < y->size[0]; n++)
    for (int k = 0; k < y->size[1]; k++)
      for (int i = 0; i < y->size[2]; i++)
        for (int j = 0; j < y->size[3]; j++) {
          float sum = 0;
          for (int a = 0; a < rows; a++)
            for (int b = 0; b < columns; b++)
              if (inside(by, x, i, j, a, b, &h, &v))
                for (int c = 0; c < channels; c++)
                  sum += read(x->type, from, place(x, n, c, h, v)) *
                         read(w->type, weight, (((long)k * rows + a) * columns + b) * channels + c);
          write(y->type, to, place(y, n, k, i, j), sum);
        }
  return SUCCESS;
}

int cudnnConvolutionBackwardFilter(void *handle, const float *alpha, Tensor *x, const void *from, Tensor *y,
                                   const void *gradient, Convolution *by, int algorithm, void *room, size_t size,
                                   const float *beta, Filter *w, void *weight) {
  (void)handle;
  if (*alpha != 1 || *beta != 0 || algorithm != 1 || size != 64) return 2000;
  memset(room, 0, size);
  backward++;
  int channels = w->size[1], rows = w->size[2], columns = w->size[3], h, v;
  for (int k = 0; k < w->size[0]; k++)
    for (int a = 0; a < rows; a++)
      for (int b = 0; b < columns; b++)
        for (int c = 0; c < channels; c++) {
          float sum = 0;
          for (int n = 0; n < y->size[0]; n++)
            for (int i = 0; i < y->size[2]; i++)
              for (int j = 0; j < y->size[3]; j++)
                if (inside(by, x, i, j, a, b, &h, &v))
                  sum += read(x->type, from, place(x, n, c, h, v)) * read(y->type, gradient, place(y, n, k, i, j));
          write(w->type, weight, (((long)k * rows + a) * columns + b) * channels + c, sum);
        }
  return SUCCESS;
}
