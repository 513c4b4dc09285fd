// nnU-Net's inference of one 2-D image, step by step as nnunet_nas/runtime does it: arrays in, arrays out.
//
// Images are {channels, height, width, data}, data a Float32Array in (c, y, x). Sums are rounded to single and to half
// precision where the runtime's are, so that equal logits fall to the same class.

const SIGMA = 1 / 8; // of the window's weights, in patch sizes
const PEAK = 10; // their largest value
const EPSILON = 1e-8;

const single = new Float32Array(1);
const bits = new Uint32Array(single.buffer);
const SHIFT = 1.5 * 2 ** 52; // adding it rounds a double to a whole number, half to even

/** A single-precision number rounded to half precision. */
export function half(x) {
  single[0] = x;
  const exponent = Math.max(((bits[0] >>> 23) & 255) - 127, -14);
  const quantum = 2 ** (exponent - 10);
  return (x / quantum + SHIFT - SHIFT) * quantum;
}

/** The nearest whole number, half to even, as NumPy rounds. */
const roundEven = (x) => x + SHIFT - SHIFT;

/** Crops to where any channel is not zero. Returns the image, the mask within it and the box's corner. */
export function cropToNonzero({ channels, height, width, data }) {
  const plane = height * width;
  // nnU-Net fills holes in three dimensions, and a single plane has none: it is open above and below.
  const inside = new Uint8Array(plane);
  for (let i = 0; i < channels * plane; i++) if (data[i] !== 0) inside[i % plane] = 1;
  let [top, bottom, left, right] = [height, -1, width, -1];
  for (let i = 0; i < plane; i++) {
    if (!inside[i]) continue;
    const [y, x] = [Math.floor(i / width), i % width];
    [top, bottom, left, right] = [Math.min(top, y), Math.max(bottom, y), Math.min(left, x), Math.max(right, x)];
  }
  if (bottom < 0) [top, bottom, left, right] = [0, height - 1, 0, width - 1];
  const [h, w] = [bottom - top + 1, right - left + 1];
  const image = { channels, height: h, width: w, data: new Float32Array(channels * h * w) };
  const mask = new Uint8Array(h * w);
  for (let y = 0; y < h; y++) {
    const from = (top + y) * width + left;
    mask.set(inside.subarray(from, from + w), y * w);
    for (let c = 0; c < channels; c++) {
      image.data.set(data.subarray(c * plane + from, c * plane + from + w), (c * h + y) * w);
    }
  }
  return { image, mask, top, left };
}

/** Changes one channel in place by one of nnU-Net's schemes. */
export function normalise(channel, mask, { scheme, use_mask: masked, intensities }) {
  switch (scheme) {
    case "ZScoreNormalization":
      return zScore(channel, masked ? mask : null);
    case "CTNormalization": {
      const { mean, std, percentile_00_5: low, percentile_99_5: high } = intensities;
      return change(channel, (x) => Math.fround(Math.min(Math.max(x, low), high) - mean) / Math.max(std, EPSILON));
    }
    case "RescaleTo01Normalization": {
      const low = channel.reduce((a, b) => Math.min(a, b));
      change(channel, (x) => x - low);
      const high = Math.max(channel.reduce((a, b) => Math.max(a, b)), EPSILON);
      return change(channel, (x) => x / high);
    }
    case "RGBTo01Normalization":
      return change(channel, (x) => x / 255);
    case "NoNormalization":
      return channel;
    default:
      throw new Error(`normalisation ${scheme} is unknown to this page`);
  }
}

function change(channel, rule) {
  for (let i = 0; i < channel.length; i++) channel[i] = rule(channel[i]);
  return channel;
}

function zScore(channel, mask) {
  let [count, sum, squares] = [0, 0, 0];
  const each = (action) => {
    for (let i = 0; i < channel.length; i++) if (!mask || mask[i]) action(i);
  };
  each((i) => (count++, (sum += channel[i])));
  const mean = Math.fround(sum / count);
  each((i) => (squares += (channel[i] - sum / count) ** 2));
  const deviation = Math.max(Math.fround(Math.sqrt(squares / count)), EPSILON);
  each((i) => (channel[i] = Math.fround(channel[i] - mean) / deviation));
  return channel;
}

/** Zeros around an image that is smaller than a patch, and where it lies in the result. */
export function pad({ channels, height, width, data }, [patchHeight, patchWidth]) {
  const [h, w] = [Math.max(height, patchHeight), Math.max(width, patchWidth)];
  const [top, left] = [Math.floor((h - height) / 2), Math.floor((w - width) / 2)];
  const padded = { channels, height: h, width: w, data: new Float32Array(channels * h * w) };
  for (let row = 0; row < channels * height; row++) {
    const [c, y] = [Math.floor(row / height), row % height];
    padded.data.set(data.subarray(row * width, (row + 1) * width), (c * h + top + y) * w + left);
  }
  return { padded, top, left };
}

/** First pixels of the patches along one axis; `step` is in patch sizes. */
export function patchStarts(size, patch, step) {
  const count = Math.ceil((size - patch) / (patch * step)) + 1;
  return Array.from({ length: count }, (_, i) => roundEven(((size - patch) / Math.max(count - 1, 1)) * i));
}

/** Weight of each pixel of a patch: a Gaussian, nowhere zero, in half precision. */
export function gaussianWeights([height, width]) {
  const [rows, columns] = [profile(height), profile(width)];
  const largest = Math.max(...rows) * Math.max(...columns);
  const weights = new Float32Array(height * width);
  let least = Infinity;
  for (let i = 0; i < weights.length; i++) {
    const exact = (rows[Math.floor(i / width)] * columns[i % width]) / (largest / PEAK);
    weights[i] = half(Math.fround(exact));
    if (weights[i] > 0) least = Math.min(least, weights[i]);
  }
  return weights.map((weight) => weight || least);
}

function profile(size) {
  const sigma = size * SIGMA;
  const radius = Math.floor(4 * sigma + 0.5);
  const middle = Math.floor(size / 2);
  return Array.from({ length: size }, (_, i) =>
    Math.abs(i - middle) > radius ? 0 : Math.exp((-0.5 / sigma ** 2) * (i - middle) ** 2),
  );
}

/** A copy of an image's data, mirrored along y, x or both. */
function mirrored(data, height, width, [alongY, alongX]) {
  const result = new Float32Array(data.length);
  for (let i = 0; i < data.length; i++) {
    const x = i % width;
    const y = Math.floor(i / width) % height;
    const rest = i - y * width - x;
    result[rest + (alongY ? height - 1 - y : y) * width + (alongX ? width - 1 - x : x)] = data[i];
  }
  return result;
}

/** The flips that nnU-Net averages over: each axis alone, then both. */
export function flipsOf(axes) {
  const single = axes.map((axis) => [axis === 0, axis === 1]);
  return axes.length === 2 ? [...single, [true, true]] : single;
}

/**
 * Logits of a whole image, (heads, y, x).
 *
 * @param network async: (Float32Array of (1, c, *patch)) to Float32Array of (1, heads, *patch)
 * @param advance called after each patch
 */
export async function predictLogits(network, image, { heads, patchSize, flips, step, advance }) {
  const [patchHeight, patchWidth] = patchSize;
  const { padded, top, left } = pad(image, patchSize);
  const { channels, height, width } = padded;
  const weights = gaussianWeights(patchSize);
  const total = new Float32Array(heads * height * width);
  const weight = new Float32Array(height * width);
  const area = patchHeight * patchWidth;
  for (const y0 of patchStarts(height, patchHeight, step)) {
    for (const x0 of patchStarts(width, patchWidth, step)) {
      const patch = new Float32Array(channels * area);
      for (let row = 0; row < channels * patchHeight; row++) {
        const [c, y] = [Math.floor(row / patchHeight), row % patchHeight];
        const from = (c * height + y0 + y) * width + x0;
        patch.set(padded.data.subarray(from, from + patchWidth), row * patchWidth);
      }
      const logits = await meanOverFlips(network, patch, patchHeight, patchWidth, flips);
      for (let i = 0; i < heads * area; i++) {
        const [h, p] = [Math.floor(i / area), i % area];
        const at = (y0 + Math.floor(p / patchWidth)) * width + x0 + (p % patchWidth);
        const sum = total[h * height * width + at] + Math.fround(logits[i] * weights[p]);
        total[h * height * width + at] = half(Math.fround(sum));
        if (h === 0) weight[at] = half(weight[at] + weights[p]);
      }
      advance();
    }
  }
  const result = new Float32Array(heads * image.height * image.width);
  for (let i = 0; i < result.length; i++) {
    const x = i % image.width;
    const y = Math.floor(i / image.width) % image.height;
    const h = Math.floor(i / (image.width * image.height));
    const at = (top + y) * width + left + x;
    result[i] = half(Math.fround(total[h * height * width + at] / weight[at]));
  }
  return result;
}

async function meanOverFlips(network, patch, height, width, flips) {
  const sum = await network(patch);
  for (const flip of flips) {
    const back = mirrored(await network(mirrored(patch, height, width, flip)), height, width, flip);
    for (let i = 0; i < sum.length; i++) sum[i] += back[i];
  }
  if (flips.length) for (let i = 0; i < sum.length; i++) sum[i] /= flips.length + 1;
  return sum;
}

/** Mean logits of the folds, added up in half precision; one array of logits per fold. */
export function meanOfFolds(folds) {
  const [total, ...others] = folds;
  for (const other of others) for (let i = 0; i < total.length; i++) total[i] = half(total[i] + other[i]);
  if (others.length) for (let i = 0; i < total.length; i++) total[i] = half(Math.fround(total[i] / folds.length));
  return total;
}

/** Labels from logits, (heads, n) to (n): the highest, the first of equal ones; or regions, one written over the other. */
export function classify(logits, heads, regionValues) {
  const count = logits.length / heads;
  const labels = new Uint8Array(count);
  for (let i = 0; i < count; i++) {
    let best = 0;
    for (let h = 0; h < heads; h++) {
      const logit = logits[h * count + i];
      if (regionValues) {
        if (Math.fround(1 / (1 + Math.exp(-logit))) > 0.5) labels[i] = regionValues[h];
      } else if (logit > logits[best * count + i]) best = h;
    }
    if (!regionValues) labels[i] = best;
  }
  return labels;
}

/** nnU-Net's postprocessing: of some labels together only the largest connected component stays (all if equal). */
export function keepComponents(labels, height, width, steps) {
  for (const { labels: chosen, background } of steps) {
    const component = new Int32Array(labels.length);
    const sizes = [0];
    for (let start = 0; start < labels.length; start++) {
      if (component[start] || !chosen.includes(labels[start])) continue;
      sizes.push(0);
      const stack = [start];
      component[start] = sizes.length - 1;
      while (stack.length) {
        const at = stack.pop();
        sizes[sizes.length - 1]++;
        const [y, x] = [Math.floor(at / width), at % width];
        for (let ny = Math.max(y - 1, 0); ny <= Math.min(y + 1, height - 1); ny++) {
          for (let nx = Math.max(x - 1, 0); nx <= Math.min(x + 1, width - 1); nx++) {
            const next = ny * width + nx;
            if (component[next] || !chosen.includes(labels[next])) continue;
            component[next] = sizes.length - 1;
            stack.push(next);
          }
        }
      }
    }
    const largest = sizes.reduce((a, b) => Math.max(a, b));
    for (let i = 0; i < labels.length; i++) {
      if (component[i] && sizes[component[i]] < largest) labels[i] = background;
    }
  }
  return labels;
}

/**
 * The label map of an image, (y, x).
 *
 * @param networks one per fold, see predictLogits
 * @param report called with the share of the work that is done, 0 to 1
 */
export async function predict(image, recipe, networks, { mirror = true, step = 0.5, report = () => {} } = {}) {
  const { image: cropped, mask, top, left } = cropToNonzero(image);
  const area = cropped.height * cropped.width;
  recipe.normalisation.forEach((rule, c) => normalise(cropped.data.subarray(c * area, (c + 1) * area), mask, rule));
  const [height, width] = [cropped.height, cropped.width].map((size, axis) => Math.max(size, recipe.patch_size[axis]));
  const patches =
    patchStarts(height, recipe.patch_size[0], step).length * patchStarts(width, recipe.patch_size[1], step).length;
  let done = 0;
  const settings = {
    heads: recipe.heads,
    patchSize: recipe.patch_size,
    flips: mirror ? flipsOf(recipe.mirror_axes) : [],
    step,
    advance: () => report(++done / (patches * networks.length)),
  };
  const folds = [];
  for (const network of networks) folds.push(await predictLogits(network, cropped, settings));
  const inner = classify(meanOfFolds(folds), recipe.heads, recipe.region_values);
  const labels = new Uint8Array(image.height * image.width);
  for (let y = 0; y < cropped.height; y++) {
    labels.set(inner.subarray(y * cropped.width, (y + 1) * cropped.width), (top + y) * image.width + left);
  }
  return keepComponents(labels, image.height, image.width, recipe.postprocessing);
}
