// Arrays from files: safetensors, and the page's own HTML, which holds a safetensors file in base64.

/** A file that can't be used; the message is a sentence for the reader of the page. */
export class FileError extends Error {}

const MAX_BYTES = 256 * 2 ** 20;

/** The safetensors bytes in an explorer page's HTML, or the bytes themselves where they are no HTML. */
export function payloadOf(bytes) {
  if (bytes.length > MAX_BYTES) throw new FileError("The file has more than the 256 MiB that this page reads.");
  const start = new TextDecoder("latin1").decode(bytes.subarray(0, 200)).trimStart();
  if (!start.startsWith("<")) return bytes;
  const found = new TextDecoder().decode(bytes).match(/<script id="payload"[^>]*>([\w+/=\s]*)<\/script>/);
  if (!found) throw new FileError("The file is HTML, but not a complete explorer page of this project.");
  return fromBase64(found[1].trim());
}

export function fromBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** The arrays of a safetensors file, as {name: {data, shape}}, and its metadata, as {name: text}. */
export function readTensors(bytes) {
  try {
    const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
    const { __metadata__: metadata = {}, ...entries } = JSON.parse(
      new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, 8 + length)),
    );
    const tensors = {};
    for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(entries)) {
      const part = bytes.slice(8 + length + start, 8 + length + end); // a copy, which begins at a multiple of 8 bytes
      const data = DTYPES[dtype](part.buffer);
      if (data.length !== shape.reduce((a, b) => a * b, 1)) throw new RangeError(name);
      tensors[name] = { data, shape };
    }
    return { tensors, metadata };
  } catch {
    throw new FileError("The file is damaged, or neither an explorer page nor a weights file (.safetensors).");
  }
}

const DTYPES = {
  F32: (buffer) => new Float32Array(buffer),
  F16: (buffer) => Float32Array.from(new Uint16Array(buffer), halfToNumber),
  U8: (buffer) => new Uint8Array(buffer),
};

function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
