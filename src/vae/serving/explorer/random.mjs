// Random numbers from a seed: the page prices a drawing twice alike.

/** A generator with `uniform()` in [0, 1) (mulberry32) and `normal()` (Box & Muller 1958). */
export function randomFrom(seed) {
  let state = seed >>> 0;
  function uniform() {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }
  return {
    uniform,
    normal: () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()),
  };
}

export const normals = (random, count) => Float32Array.from({ length: count }, random.normal);
