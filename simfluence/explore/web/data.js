// The page's data: JSON in which arrays are {base64, type, shape}, little-endian.

const ARRAYS = { f4: Float32Array, f8: Float64Array, i4: Int32Array };

export function parsed(text) {
  return JSON.parse(text, (_, value) => (value && value.base64 !== undefined ? arrayOf(value) : value));
}

function arrayOf({ base64, type }) {
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at++) bytes[at] = binary.charCodeAt(at);
  return new ARRAYS[type](bytes.buffer);
}
