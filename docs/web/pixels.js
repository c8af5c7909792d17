// An image file as the input of a model that `softmaxce export` wrote: what its metadata says under `decode`.

const BITS = 22; // of a weight's fraction, as in Pillow's Resample.c
const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(1 - x, 0) },
  bicubic: {
    support: 2,
    weight: (x) => x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((x - 5) * x + 8) * x * -0.5 + 2 : 0,
  },
};

/**
 * @param {Blob} file an image of a format that the browser reads
 * @param {[number, number, number]} shape channels (1 or 3), height and width
 * @param {{fit: string, interpolation: string}} resizing as in the metadata: crop, pad or stretch; bilinear, bicubic or
 *   nearest. The browser decodes all pixels of a file, also where `decode` is reduced: they differ slightly then.
 * @returns {Promise<Uint8Array>} the bytes [channels, height, width]
 */
export async function toPixels(file, [channels, height, width], resizing) {
  // The browser turns it upright by its EXIF orientation and takes the first of several frames.
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // under what is transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const result = new Uint8Array(channels * height * width);
  for (let channel = 0; channel < channels; channel += 1) {
    const plane = channels === 1 ? gray(rgba) : rgba.filter((_, i) => i % 4 === channel);
    result.set(resized(plane, canvas.width, canvas.height, width, height, resizing), channel * height * width);
  }
  return result;
}

/**
 * What browsers decode otherwise than Pillow, so that the probabilities are not `predict`'s to 1e-5.
 *
 * @param {Blob} file the image
 * @returns {Promise<string>} a sentence about this file; empty if nothing is known against it
 */
export async function difference(file) {
  const bytes = new DataView(await file.arrayBuffer());
  if (components(bytes) === 4) return "A CMYK image: the browser's colors can differ slightly from those in training.";
  const isExtendedWebp = bytes.byteLength > 20 && bytes.getUint32(0) === 0x52494646 && bytes.getUint32(12) === 0x56503858;
  const flags = isExtendedWebp ? bytes.getUint8(20) : 0; // of the chunk VP8X
  if (flags & 0x08) return "A WebP image with EXIF data: the browser may not have turned it upright.";
  if (flags & 0x10) return "A WebP image with transparency: the browser's colors can differ slightly from those in training.";
  return "";
}

/** The number of color components of a JPEG file; 0 if it is none. */
function components(bytes) {
  if (bytes.byteLength < 4 || bytes.getUint16(0) !== 0xffd8) return 0;
  for (let at = 2; at + 10 <= bytes.byteLength; at += 2 + bytes.getUint16(at + 2)) {
    const marker = bytes.getUint16(at);
    const isFrame = marker >= 0xffc0 && marker <= 0xffcf && ![0xffc4, 0xffc8, 0xffcc].includes(marker);
    if (isFrame) return bytes.getUint8(at + 9);
    if (marker <= 0xff00 || marker === 0xffda) return 0;
  }
  return 0;
}

/** One channel of an image at another size, as Pillow's ImageOps.fit, ImageOps.pad or Image.resize gives it. */
export function resized(plane, fromWidth, fromHeight, width, height, { fit, interpolation }) {
  if (fromWidth === width && fromHeight === height) return plane;
  if (fit === "pad") return padded(plane, fromWidth, fromHeight, width, height, interpolation);
  const whole = [0, 0, fromWidth, fromHeight];
  const box = fit === "crop" ? centered(fromWidth, fromHeight, width / height) : whole;
  return scaled(plane, fromWidth, fromHeight, width, height, box, interpolation);
}

/** The whole image in the middle of a black one. */
function padded(plane, fromWidth, fromHeight, width, height, interpolation) {
  const isWide = fromWidth / fromHeight > width / height;
  const w = isWide ? width : Math.max(1, rounded((fromWidth / fromHeight) * height));
  const h = isWide ? Math.max(1, rounded((fromHeight / fromWidth) * width)) : height;
  const inner = scaled(plane, fromWidth, fromHeight, w, h, [0, 0, fromWidth, fromHeight], interpolation);
  const left = rounded((width - w) * 0.5), top = rounded((height - h) * 0.5);
  const result = new Uint8Array(width * height);
  for (let y = 0; y < h; y += 1) result.set(inner.subarray(y * w, (y + 1) * w), (top + y) * width + left);
  return result;
}

/** To the nearest whole number, halves to the even one, as Python's round. */
function rounded(x) {
  return x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);
}

/** The part left, top, right, bottom of a channel at another size. */
function scaled(plane, fromWidth, fromHeight, width, height, [left, top, right, bottom], interpolation) {
  if (interpolation === "nearest") {
    const columns = nearest(width, left, right), rows = nearest(height, top, bottom);
    return Uint8Array.from({ length: width * height }, (_, i) =>
      plane[rows[Math.floor(i / width)] * fromWidth + columns[i % width]]);
  }
  const filter = FILTERS[interpolation];
  const across = (values, lines) => resampled(filter, values, fromWidth, 1, lines, fromWidth, width, left, right);
  const down = (values, lines) => resampled(filter, values, fromHeight, lines, lines, 1, height, top, bottom);
  // Pillow rounds to bytes after each of the two passes. Before version 13, the first was always across.
  const isDownFirst = fromHeight - height > Math.max(0, 2 * (fromWidth - width));
  return isDownFirst ? across(down(plane, fromWidth), height) : down(across(plane, fromHeight), width);
}

/** ITU-R 601 luma, in 16-bit fixed point. */
function gray(rgba) {
  return Uint8Array.from({ length: rgba.length / 4 }, (_, i) =>
    (rgba[4 * i] * 19595 + rgba[4 * i + 1] * 38470 + rgba[4 * i + 2] * 7471 + 0x8000) >> 16);
}

/** The largest part of this ratio of width to height in the middle of an image: left, top, right, bottom. */
function centered(width, height, ratio) {
  const isWide = width / height >= ratio;
  const [w, h] = [isWide ? ratio * height : width, isWide ? height : width / ratio];
  const [left, top] = width / height === ratio ? [0, 0] : [(width - w) * 0.5, (height - h) * 0.5];
  const [right, bottom] = width / height === ratio ? [width, height] : [left + w, top + h];
  return [left, top, right, bottom].map(Math.fround);
}

/** The positions in `from..to` of the values nearest to `size` new ones. */
function nearest(size, from, to) {
  const scale = Math.fround(to - from) / size;
  const positions = [];
  for (let i = 0, at = from + scale * 0.5; i < size; i += 1, at += scale) positions.push(Math.trunc(at));
  return positions;
}

/**
 * Rows or columns brought from `from..to` to `size` values each, by one of Pillow's antialiased filters.
 * `step` is the distance of two values of a line; `lines` are `lineStep` apart.
 */
function resampled(filter, values, length, step, lines, lineStep, size, from, to) {
  if (size === length && from === 0 && to === length) return values;
  const scale = Math.fround(to - from) / size, inverse = 1 / Math.max(scale, 1);
  const support = filter.support * Math.max(scale, 1);
  const result = new Uint8Array(lines * size);
  for (let i = 0; i < size; i += 1) {
    const center = from + (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), length);
    const weights = Array.from({ length: end - first }, (_, j) =>
      filter.weight(Math.abs((j + first - center + 0.5) * inverse)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const whole = weights.map((weight) => Math.trunc((weight / total) * 2 ** BITS + Math.sign(weight) * 0.5));
    for (let line = 0; line < lines; line += 1) {
      let sum = 2 ** (BITS - 1);
      whole.forEach((weight, j) => { sum += weight * values[line * lineStep + (first + j) * step]; });
      result[step === 1 ? line * size + i : i * lines + line] = Math.min(Math.max(Math.floor(sum / 2 ** BITS), 0), 255);
    }
  }
  return result;
}
