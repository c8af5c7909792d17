// An image file as the input of a model that `softmaxce export` wrote: what its metadata says under `decode`.

const BITS = 22; // of a weight's fraction, as in Pillow's Resample.c

/**
 * @param {Blob} file an image of a format that the browser reads
 * @param {[number, number, number]} shape channels (1 or 3), height and width
 * @returns {Promise<Uint8Array>} the bytes [channels, height, width]
 */
export async function toPixels(file, [channels, height, width]) {
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
    result.set(fitted(plane, canvas.width, canvas.height, width, height), channel * height * width);
  }
  return result;
}

/** One channel, scaled and center-cropped as Pillow's ImageOps.fit does. */
function fitted(plane, fromWidth, fromHeight, width, height) {
  const [left, top, right, bottom] = centered(fromWidth, fromHeight, width / height);
  const across = (values, lines) => resampled(values, fromWidth, 1, lines, fromWidth, width, left, right);
  const down = (values, lines) => resampled(values, fromHeight, lines, lines, 1, height, top, bottom);
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

/**
 * Rows or columns brought from `from..to` to `size` values each, by Pillow's antialiased bilinear filter.
 * `step` is the distance of two values of a line; `lines` are `lineStep` apart.
 */
function resampled(values, length, step, lines, lineStep, size, from, to) {
  if (size === length && from === 0 && to === length) return values;
  const scale = Math.fround(to - from) / size, support = Math.max(scale, 1), inverse = 1 / support;
  const result = new Uint8Array(lines * size);
  for (let i = 0; i < size; i += 1) {
    const center = from + (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), length);
    const weights = Array.from({ length: end - first }, (_, j) =>
      Math.max(1 - Math.abs((j + first - center + 0.5) * inverse), 0));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const whole = weights.map((weight) => Math.trunc((weight / total) * 2 ** BITS + 0.5));
    for (let line = 0; line < lines; line += 1) {
      let sum = 2 ** (BITS - 1);
      whole.forEach((weight, j) => { sum += weight * values[line * lineStep + (first + j) * step]; });
      result[step === 1 ? line * size + i : i * lines + line] = Math.min(Math.floor(sum / 2 ** BITS), 255);
    }
  }
  return result;
}
