"""Sound: a wave of fixed length <-> its log-mel spectrogram, a grid (1, mels, frames).

The wave x is cut into frames of `window` samples, one every `hop`, under a Hann window w; with
S = |FFT(w x)| / (sum w / 2), so that a full-scale sine has S = 1, and a bank M of triangles on the mel scale
m = 2595 log10(1 + f / 700),

    y = log10(max(M S^2, 10^-8)),   x0 = (y - mean) / std

with a mean for each mel band and one standard deviation over the user's data. Back to a wave: S^2 from y by
non-negative least squares (multiplicative updates, Lee and Seung 2001), the phase by the fast Griffin-Lim iteration
(Perraudin, Balazs and Sondergaard 2013) from zero, so that a grid always sounds the same. A tone comes back at its
level, and at its pitch as far as a mel band can tell.

A wave is mono, float32 in [-1, 1], at the codec's sample rate; it is cut at the end, or silence is added there, to
frames x hop samples. The codec knows nothing of speech or notes, and phase is not kept.
"""

import wave
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unidiffuser.modalities import Modality, check_whole, expect_keys, expect_shape

FLOOR = 1e-8
MAX_SECONDS = 600
MAX_BYTES = 2**28
LEAST_SQUARES_STEPS = 200
GRIFFIN_LIM_STEPS = 60
MOMENTUM = 0.99
TINY = 1e-8
TINIEST = 1e-20

Wave = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, kw_only=True)
class SoundConfig:
    """The time and frequency grid of a sound modality."""

    sample_rate: int = 8000
    """Samples a second of every wave."""
    frames: int = 64
    """Columns of the grid; a wave has frames x hop samples."""
    mels: int = 64
    """Rows of the grid: mel bands between 0 and half the sample rate."""
    hop: int = 128
    """Samples from one frame to the next."""
    window: int = 512
    """Samples a frame: a multiple of the hop, at least twice and best four times as long."""

    def __post_init__(self) -> None:
        check_whole("sample_rate of a sound modality", self.sample_rate, 1000, 192_000)
        check_whole("frames of a sound modality", self.frames, 1, 16_384)
        check_whole("window of a sound modality", self.window, 4, 16_384)
        check_whole("hop of a sound modality", self.hop, 1, self.window // 2)
        check_whole("mels of a sound modality", self.mels, 1, self.window // 2)
        if self.window % (2 * self.hop):
            raise ValueError(
                f"the window of a sound modality is {self.window}; it must be an even multiple of the hop {self.hop}"
            )
        if self.samples > MAX_SECONDS * self.sample_rate:
            raise ValueError(f"a sound modality of {self.samples} samples is longer than {MAX_SECONDS} seconds")

    @property
    def samples(self) -> int:
        """Length of every wave."""
        return self.frames * self.hop


class Sound(Modality[Wave]):
    """A wave of fixed length as a standardised log-mel spectrogram."""

    kind: ClassVar[str] = "sound"
    media_type: ClassVar[str] = "sound"
    suffix: ClassVar[str] = ".wav"

    def __init__(self, grid: SoundConfig, mean: Tensor, std: Tensor) -> None:
        """grid: of time and frequency. mean: (mels,) of the log-mel spectrogram y. std: () of y - mean."""
        self.grid = grid
        self.mean = mean
        self.std = std

    @property
    def streams(self) -> dict[str, tuple[int, ...]]:
        """One grid (1, mels, frames)."""
        return {"": (1, self.grid.mels, self.grid.frames)}

    def check(self, raw: Any) -> Wave:
        """A wave of exactly frames x hop samples; ValueError unless it is one row of finite floats in [-1, 1]."""
        if not isinstance(raw, np.ndarray) or raw.dtype.kind != "f":
            given = f"an array of {raw.dtype}" if isinstance(raw, np.ndarray) else type(raw).__name__
            raise ValueError(f"a sound must be an array of floats from -1 to 1, not {given}")
        if raw.ndim != 1 or not raw.size:
            raise ValueError(f"a sound has the shape {raw.shape}; give one channel with at least one sample")
        check_duration(raw.size, self.grid.sample_rate)
        if not np.isfinite(raw).all() or np.abs(raw).max() > 1:
            raise ValueError("a sound holds NaN, infinity or samples beyond -1 to 1; scale it first")
        cut = raw[: self.grid.samples].astype(np.float32)
        return np.pad(cut, (0, self.grid.samples - len(cut)))

    def encode(self, raws: Sequence[Wave]) -> dict[str, Tensor]:
        """B waves -> {"": (B, 1, mels, frames)}."""
        grids = [(self._log_mel(raw) - self.mean[:, None]) / self.std for raw in raws]
        return {"": torch.stack(grids)[:, None] if grids else torch.zeros(0, *self.streams[""])}

    def decode(self, streams: Mapping[str, Tensor]) -> list[Wave]:
        """{"": (B, 1, mels, frames)} -> B waves, clipped to [-1, 1]."""
        grids = streams[""].detach().float().cpu()
        expect_shape("the latent of a sound", grids, (-1, *self.streams[""]))
        mels = 10 ** (grids[:, 0] * self.std + self.mean[:, None]).clamp(max=2.0)
        # what lies at the floor was that or less: silence
        return [self._wave(torch.where(mel > 1.01 * FLOOR, mel, 0.0)).clamp(-1, 1).numpy() for mel in mels]

    def read(self, path: str | Path) -> Wave:
        """The wave in a PCM .wav file of 8, 16, 24 or 32 bits, its channels averaged, resampled by `resample`."""
        samples, rate = read_wav(path)
        return self.check(resample(samples, rate, self.grid.sample_rate).clip(-1, 1))

    def write(self, raw: Wave, path: str | Path) -> None:
        """Write a mono 16-bit PCM .wav file."""
        with open(path, "wb") as file, wave.open(file, "wb") as wav:
            wav.setparams((1, 2, self.grid.sample_rate, 0, "NONE", ""))
            wav.writeframes((np.clip(raw, -1, 1) * 32767).round().astype("<i2").tobytes())

    def config(self) -> dict[str, Any]:
        """The grid."""
        return asdict(self.grid)

    def state(self) -> dict[str, Tensor]:
        """The mean (mels,) and the standard deviation () of the log-mel spectrogram."""
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def restore(cls, config: dict[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The codec of this grid and scale."""
        expect_keys("config of a sound modality", config, [field.name for field in fields(SoundConfig)])
        expect_keys("state of a sound modality", state, ["mean", "std"])
        grid = SoundConfig(**config)
        expect_shape("the saved mean of a sound modality", state["mean"], (grid.mels,))
        expect_shape("the saved std of a sound modality", state["std"], ())
        if not state["std"] > 0:
            raise ValueError("the saved std of a sound modality must be positive; it is damaged")
        return cls(grid, state["mean"].float(), state["std"].float())

    @classmethod
    def fit(cls, raws: Iterable[Any], /, **grid: int) -> Self:
        """Measure the scale of the log-mel spectrogram; the options are the fields of SoundConfig."""
        expect = {field.name for field in fields(SoundConfig)}
        if unknown := sorted(set(grid) - expect):
            raise ValueError(f"a sound modality has no option {unknown[0]!r}; choose from {', '.join(sorted(expect))}")
        config = SoundConfig(**grid)
        unscaled = cls(config, torch.zeros(config.mels), torch.ones(()))
        count = 0
        total, square = torch.zeros(2, config.mels, dtype=torch.double)
        for raw in raws:
            grid_of_raw = unscaled.encode([raw])[""][0, 0].double()
            count += config.frames
            total += grid_of_raw.sum(1)
            square += grid_of_raw.square().sum(1)
        if not count:
            raise ValueError("there are no sounds to learn a sound modality from; give at least one")
        mean = total / count
        variance = float((square / count - mean.square()).mean())
        return cls(config, mean.float(), torch.tensor(max(variance, TINY) ** 0.5))

    @cached_property
    def _bank(self) -> Tensor:
        return mel_bank(self.grid)

    @cached_property
    def _hann(self) -> Tensor:
        return torch.hann_window(self.grid.window)

    def _log_mel(self, raw: Wave) -> Tensor:
        """A wave -> y (mels, frames)."""
        magnitude = self._spectrum(torch.from_numpy(self.check(raw))).abs() / (self._hann.sum() / 2)
        return (self._bank @ magnitude.square()).clamp(min=FLOOR).log10()

    def _spectrum(self, samples: Tensor) -> Tensor:
        """A wave (N,) -> its complex spectrum (bins, frames); frame k is centred on the k-th hop of samples."""
        margin = (self.grid.window - self.grid.hop) // 2
        frames = F.pad(samples, (margin, margin)).unfold(0, self.grid.window, self.grid.hop)
        return torch.fft.rfft(frames * self._hann).T

    def _overlap(self, spectrum: Tensor) -> Tensor:
        """The wave (N,) whose spectrum is nearest in least squares: sum of w frame over sum of w^2."""
        g = self.grid
        frames = torch.fft.irfft(spectrum.T, n=g.window) * self._hann
        both = torch.stack([frames, (self._hann**2).expand(g.frames, -1)])
        length = g.samples + g.window - g.hop
        sums = F.fold(both.transpose(1, 2), (1, length), (1, g.window), stride=(1, g.hop))[:, 0, 0]
        margin = (g.window - g.hop) // 2
        total, weight = sums[:, margin : margin + g.samples]
        return total / weight.clamp(min=TINY)

    def _wave(self, mel: Tensor) -> Tensor:
        """Mel powers (mels, frames) -> a wave (N,)."""
        magnitude = unmix(self._bank, mel).sqrt() * (self._hann.sum() / 2)
        spectrum = previous = magnitude.to(torch.complex64)
        for _ in range(GRIFFIN_LIM_STEPS):
            consistent = self._spectrum(self._overlap(spectrum))
            ahead = consistent + MOMENTUM * (consistent - previous)
            spectrum, previous = magnitude * ahead / ahead.abs().clamp(min=TINY), consistent
        return self._overlap(spectrum)


def mel_bank(grid: SoundConfig) -> Tensor:
    """Triangles of height 1 whose corners lie evenly on the mel scale, averaged over each bin: (mels, bins)."""
    top = 2595 * np.log10(1 + grid.sample_rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, grid.mels + 2) / 2595) - 1)
    spacing = grid.sample_rate / grid.window
    # a low triangle may be narrower than a bin: sample it finely and average, so that none is empty
    offsets = (np.arange(32) + 0.5) / 32 - 0.5
    f = (np.arange(grid.window // 2 + 1)[:, None] + offsets) * spacing
    low, peak, high = (corners[i : i + grid.mels, None, None] for i in range(3))
    triangles = np.minimum((f - low) / (peak - low), (high - f) / (high - peak)).clip(0)
    return torch.tensor(triangles.mean(-1), dtype=torch.float32)


def unmix(bank: Tensor, mel: Tensor) -> Tensor:
    """The P >= 0 (bins, frames) with bank P nearest to mel: P <- P (bank' mel) / (bank' bank P), from bank' mel."""
    target = bank.T @ mel
    power = target.clone()
    for _ in range(LEAST_SQUARES_STEPS):
        power = power * target / (bank.T @ (bank @ power)).clamp(min=TINIEST)
    return power


def check_duration(samples: int, rate: int) -> None:
    """ValueError if a wave is longer than MAX_SECONDS."""
    if samples > MAX_SECONDS * rate:
        raise ValueError(f"a sound lasts {ceil(samples / rate)} seconds; at most {MAX_SECONDS} are accepted")


def read_wav(path: str | Path) -> tuple[Wave, int]:
    """The samples (N,) in [-1, 1], channels averaged, and the sample rate of a PCM .wav file."""
    with open(path, "rb") as file:
        return decode_wav(file, str(path))


def decode_wav(file: BinaryIO, name: str) -> tuple[Wave, int]:
    """As `read_wav`, of an open file; `name` stands in the message of a ValueError."""
    try:
        with wave.open(file, "rb") as wav:
            width, channels, rate, count = wav.getsampwidth(), wav.getnchannels(), wav.getframerate(), wav.getnframes()
            if width not in (1, 2, 3, 4) or not 1 <= channels <= 64 or not 1000 <= rate <= 384_000:
                raise wave.Error(f"{8 * width} bits, {channels} channels, {rate} samples a second")
            check_duration(count, rate)
            data = wav.readframes(min(count, MAX_BYTES // (width * channels)))
    except (wave.Error, EOFError) as error:
        reason = str(error) or "it ends too early"
        raise ValueError(f"the file {name} is not a PCM .wav file that can be read ({reason}); convert it") from error
    if len(data) != count * width * channels or not data:
        raise ValueError(f"the sound file {name} is empty or cut short; get a whole copy of it")
    mono: Wave = from_pcm(data, width).reshape(-1, channels).mean(1, dtype=np.float32)
    return mono, rate


def from_pcm(data: bytes, width: int) -> Wave:
    """PCM samples of `width` bytes as floats in [-1, 1): 8 bits are unsigned about 128, the others signed."""
    columns = np.frombuffer(data, np.uint8).reshape(-1, width)
    if width == 1:
        columns = columns ^ np.uint8(128)  # now signed
    words = np.zeros((len(columns), 4), np.uint8)  # the sample in the high bytes, so that its sign is the word's
    words[:, 4 - width :] = columns
    return np.asarray(words.view("<i4")[:, 0] / 2.0**31, np.float32)


def resample(samples: Wave, rate: int, wanted: int) -> Wave:
    """Change the sample rate by cutting or padding the Fourier transform: exact for a band-limited periodic wave."""
    if rate == wanted:
        return samples
    count = max(1, round(len(samples) * wanted / rate))
    spectrum = np.fft.rfft(samples.astype(np.float64))[: count // 2 + 1]
    return (np.fft.irfft(spectrum, count) * (count / len(samples))).astype(np.float32)
