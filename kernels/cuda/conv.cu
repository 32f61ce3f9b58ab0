// Convolutions as their definition says, for every window that there is: any
// stride, dilation, groups and number of axes. Terms come in the order of the
// CPU's, one fused multiply-add each: input channels, then taps in row-major order.

KERNEL conv(ARGS) {
    const View &x = a.in[0];
    i64 in_group = x.dims[1] / a.groups, out_group = a.channels / a.groups;
    EACH_ELEMENT(p) {
        real sum = 0;
        Elements w = elements(a.in[1]) + p.c * in_group * a.kernel[0] * a.kernel[1] * a.kernel[2];
        for (i64 c = 0; c < in_group; ++c)
            for (i64 td = 0; td < a.kernel[0]; ++td) {
                i64 d = p.d * a.stride[0] + td * a.dilation[0] - a.pad[0];
                for (i64 th = 0; th < a.kernel[1]; ++th) {
                    i64 h = p.h * a.stride[1] + th * a.dilation[1] - a.pad[1];
                    bool row = d >= 0 && d < x.dims[2] && h >= 0 && h < x.dims[3];
                    for (i64 tw = 0; tw < a.kernel[2]; ++tw, ++w) {
                        i64 col = p.w * a.stride[2] + tw * a.dilation[2] - a.pad[2];
                        if (row && col >= 0 && col < x.dims[4])
                            sum = fused(*at(x, p.n, p.c / out_group * in_group + c, d, h, col), *w,
                                        sum);
                    }
                }
            }
        *at(a.out, p) = a.flag ? sum + flat(a.in[2])[p.c] : sum;
    }
}

// The input position that tap `t` brings to output `i`, if it is whole and inside.
__device__ inline bool source(const Args &a, int s, i64 i, i64 t, i64 extent, i64 *j) {
    i64 reach = i + a.pad[s] - t * a.dilation[s];
    if (reach < 0 || reach % a.stride[s] != 0) return false;
    *j = reach / a.stride[s];
    return *j < extent;
}

KERNEL conv_transpose(ARGS) {
    const View &x = a.in[0];
    i64 in_group = x.dims[1] / a.groups, out_group = a.channels / a.groups;
    i64 taps = a.kernel[0] * a.kernel[1] * a.kernel[2];
    EACH_ELEMENT(p) {
        real sum = 0;
        i64 group = p.c / out_group, c = p.c % out_group;
        for (i64 k = group * in_group; k < (group + 1) * in_group; ++k) {
            Elements w = elements(a.in[1]) + (k * out_group + c) * taps;
            for (i64 td = 0; td < a.kernel[0]; ++td)
                for (i64 th = 0; th < a.kernel[1]; ++th)
                    for (i64 tw = 0; tw < a.kernel[2]; ++tw, ++w) {
                        i64 d, h, col;
                        if (source(a, 0, p.d, td, x.dims[2], &d) &&
                            source(a, 1, p.h, th, x.dims[3], &h) &&
                            source(a, 2, p.w, tw, x.dims[4], &col))
                            sum = fused(*at(x, p.n, k, d, h, col), *w, sum);
                    }
        }
        *at(a.out, p) = a.flag ? sum + flat(a.in[2])[p.c] : sum;
    }
}

// One block per element of the weight; the region is one of `ȳ`, in[1].
KERNEL conv_weight_grad(ARGS) {
    const View &x = a.in[0];
    i64 taps = a.kernel[0] * a.kernel[1] * a.kernel[2];
    i64 in_group = x.dims[1] / a.groups, out_group = a.in[1].dims[1] / a.groups;
    i64 n = points(a);
    for (i64 e = blockIdx.x; e < a.count; e += gridDim.x) {
        i64 k = e / (in_group * taps), c = k / out_group * in_group + e / taps % in_group;
        i64 tw = e % a.kernel[2], th = e / a.kernel[2] % a.kernel[1],
            td = e % taps / (a.kernel[1] * a.kernel[2]);
        double sum = 0;
        for (i64 i = threadIdx.x; i < n; i += blockDim.x) {
            Pos p = position(a, i, 1);
            i64 d = p.d * a.stride[0] + td * a.dilation[0] - a.pad[0];
            i64 h = p.h * a.stride[1] + th * a.dilation[1] - a.pad[1];
            i64 w = p.w * a.stride[2] + tw * a.dilation[2] - a.pad[2];
            if (d >= 0 && d < x.dims[2] && h >= 0 && h < x.dims[3] && w >= 0 && w < x.dims[4])
                sum += (double)*at(x, p.n, c, d, h, w) *
                       (double)*at(a.in[1], p.n, k, p.d, p.h, p.w);
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) {
            if (a.state) a.state[e] += sum;
            else flat(a.out)[e] += (real)sum;
        }
    }
}
