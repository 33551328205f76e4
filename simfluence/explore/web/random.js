// The whole numbers that numpy's default_rng(0).integers(0, below, size=n) draws: PCG64 (O'Neill 2014, XSL-RR)
// and the bounded numbers of Lemire (2019). The first state is in the page, as numpy made it of the seed 0.

const PCG_MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;
const MASK_64 = (1n << 64n) - 1n;
const MASK_128 = (1n << 128n) - 1n;

function* words32(generator) {
  let state = BigInt(generator.state);
  const increment = BigInt(generator.increment);
  for (;;) {
    state = (state * PCG_MULTIPLIER + increment) & MASK_128;
    const mixed = (state >> 64n) ^ (state & MASK_64);
    const turn = state >> 122n;
    const word = ((mixed >> turn) | (mixed << (64n - turn))) & MASK_64;
    yield Number(word & 0xffffffffn);
    yield Number(word >> 32n);
  }
}

// n whole numbers in 0 … below − 1; below is at most 2³².
export function integers(generator, below, n) {
  const words = words32(generator);
  const wide = BigInt(below);
  const threshold = 2 ** 32 % below;
  return Int32Array.from({ length: n }, () => {
    for (;;) {
      const product = BigInt(words.next().value) * wide;
      if (Number(product & 0xffffffffn) >= threshold) return Number(product >> 32n);
    }
  });
}
