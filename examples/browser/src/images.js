// Image files to arrays by the browser's own decoder, and label maps to PNG files.
import { zlibSync } from "./vendor/fflate.js";
import { Problem } from "./exported.js";

const PNG = [0x89, 0x50, 0x4e, 0x47];
const PALETTE = 3;
const PNG_CHANNELS = { 0: 1, 2: 3, 3: 3, 4: 2, 6: 4 };
const ELSEWHERE = "use predict.pyz of the exported folder";

/** An image as the pipeline takes it, and a canvas's ImageData to show it. */
export async function readImage(file, channels) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (!bytes.length) throw new Problem(`${file.name} is empty`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([bytes]), { premultiplyAlpha: "none", colorSpaceConversion: "none" });
  } catch {
    throw new Problem(`${file.name} is no image that this browser can read, or is not whole`);
  }
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const shown = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const found = channelsOf(file, bytes, shown.data);
  if (found !== channels) {
    throw new Problem(`${file.name} has ${found} channels, the model was trained on ${channels}`);
  }
  const plane = bitmap.width * bitmap.height;
  const data = new Float32Array(channels * plane);
  for (let c = 0; c < channels; c++) for (let i = 0; i < plane; i++) data[c * plane + i] = shown.data[4 * i + c];
  return { image: { channels, height: bitmap.height, width: bitmap.width, data }, shown };
}

/** Channels that Python's readers find in the file. */
function channelsOf(file, bytes, rgba) {
  if (PNG.every((byte, i) => bytes[i] === byte)) {
    const [depth, kind] = [bytes[24], bytes[25]];
    if (depth !== 8 && kind !== PALETTE) {
      throw new Problem(`${file.name} has ${depth} bits per channel, this page reads 8: ${ELSEWHERE}`);
    }
    return PNG_CHANNELS[kind];
  }
  // Of other formats only the decoded pixels say whether they are grey.
  for (let i = 0; i < rgba.length; i += 4) if (rgba[i] !== rgba[i + 1] || rgba[i] !== rgba[i + 2]) return 3;
  return 1;
}

/** A label map, (y, x), as an 8-bit grey PNG of its values. */
export function labelsToPng(labels, height, width) {
  const rows = new Uint8Array(height * (width + 1)); // each begins with its filter: none
  for (let y = 0; y < height; y++) rows.set(labels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  header[8] = 8;
  const signature = new Uint8Array([...PNG, 0x0d, 0x0a, 0x1a, 0x0a]);
  const parts = [signature, chunk("IHDR", header), chunk("IDAT", zlibSync(rows)), chunk("IEND", new Uint8Array())];
  return new Blob(parts, { type: "image/png" });
}

function chunk(name, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(name), 4);
  bytes.set(content, 8);
  view.setUint32(content.length + 8, crc(bytes.subarray(4, content.length + 8)));
  return bytes;
}

/** CRC-32 as PNG has it. */
function crc(bytes) {
  let value = ~0;
  for (const byte of bytes) {
    value ^= byte;
    for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (value & 1 ? 0xedb88320 : 0);
  }
  return ~value >>> 0;
}
