// A sound as a picture of its frequencies, in the browser: short windows, FFT, logarithm.

export function spectrogram(canvas, data) {
  const samples = waveOf(data);
  const size = 256;
  const columns = 320;
  const hop = Math.max(1, Math.floor((samples.length - size) / columns));
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, size / 2);
  for (let column = 0; column < columns; column += 1) {
    const power = spectrum(samples, column * hop, size);
    power.forEach((p, bin) => {
      const level = Math.max(0, Math.min(1, (Math.log10(p + 1e-9) + 6) / 6));
      const at = 4 * ((size / 2 - 1 - bin) * columns + column);
      [40 + 215 * level, 40 + 150 * level * level, 110 + 60 * (1 - level), 255].forEach((c, k) => { pixels.data[at + k] = c; });
    });
  }
  const small = new OffscreenCanvas(columns, size / 2);
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

// 16-bit PCM mono, as the server writes it.
export function waveOf(buffer) {
  const view = new DataView(buffer);
  const samples = new Float32Array(Math.max(0, Math.floor((buffer.byteLength - 44) / 2)));
  for (let k = 0; k < samples.length; k += 1) samples[k] = view.getInt16(44 + 2 * k, true) / 32768;
  return samples;
}

// |FFT|^2 of a Hann window, the first half of the bins.
export function spectrum(samples, start, size) {
  const re = new Float64Array(size);
  const im = new Float64Array(size);
  for (let k = 0; k < size; k += 1) re[k] = (samples[start + k] || 0) * (0.5 - 0.5 * Math.cos((2 * Math.PI * k) / size));
  fft(re, im);
  return Array.from({ length: size / 2 }, (_, k) => (re[k] ** 2 + im[k] ** 2) / size ** 2);
}

function fft(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i += 1) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) { [re[i], re[j]] = [re[j], re[i]]; [im[i], im[j]] = [im[j], im[i]]; }
  }
  for (let length = 2; length <= n; length *= 2) {
    for (let start = 0; start < n; start += length) {
      for (let k = 0; k < length / 2; k += 1) {
        const angle = (-2 * Math.PI * k) / length;
        const [c, s] = [Math.cos(angle), Math.sin(angle)];
        const [a, b] = [start + k, start + k + length / 2];
        const [x, y] = [re[b] * c - im[b] * s, re[b] * s + im[b] * c];
        [re[b], im[b], re[a], im[a]] = [re[a] - x, im[a] - y, re[a] + x, im[a] + y];
      }
    }
  }
}
