"""Sound: the spectrogram against definitions and independent solvers, the way back, .wav files by hand."""

import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from unidiffuser.modalities.sound import Sound, SoundConfig, mel_bank, resample, unmix

GRID = SoundConfig()
T = np.arange(GRID.samples) / GRID.sample_rate


def chirps() -> list[np.ndarray]:
    """Two seconds' worth of speech-like sounds: falling voices with overtones, swelling and dying away, and a rest."""
    sounds = []
    for pitch in (110.0, 160.0, 220.0):
        phase = 2 * np.pi * pitch * (T - 0.15 * T**2)
        voice = sum(np.sin(k * phase) / k for k in range(1, 9))
        sounds.append((0.3 * voice * np.sin(np.pi * np.clip(T / 0.7, 0, 1)) ** 2).astype(np.float32))
    return sounds


CODEC = Sound.fit(chirps())


def test_the_way_back_keeps_the_spectrogram() -> None:
    x = CODEC.encode(chirps())[""]
    again = CODEC.encode(CODEC.decode({"": x}))[""]
    decibels = 10 * (again - x) * CODEC.std
    assert decibels.square().mean().sqrt() < 2.7  # 9.1 without Griffin-Lim; the standard deviation is 16


@pytest.mark.parametrize("frequency", [200.0, 440.0, 1000.0, 3000.0])
def test_a_pure_tone_keeps_its_frequency_and_level(frequency: float) -> None:
    (back,) = CODEC.decode(CODEC.encode([(0.5 * np.sin(2 * np.pi * frequency * T)).astype(np.float32)]))
    peak = np.abs(np.fft.rfft(back * np.hanning(len(back)))).argmax() * GRID.sample_rate / len(back)
    assert peak == pytest.approx(frequency, abs=GRID.sample_rate / GRID.window)  # a bin
    assert np.sqrt(np.mean(back[1000:-1000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)


def test_overlap_inverts_spectrum() -> None:
    noise = torch.randn(GRID.samples, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(CODEC._overlap(CODEC._spectrum(noise)), noise, atol=1e-4)


def test_the_spectrogram_is_what_its_definition_says() -> None:
    wave_in, frame, bins = chirps()[0], 20, np.arange(GRID.window // 2 + 1)
    n = np.arange(GRID.window)
    hann = np.sin(np.pi * n / GRID.window) ** 2
    start = frame * GRID.hop - (GRID.window - GRID.hop) // 2
    spectrum = np.exp(-2j * np.pi * np.outer(bins, n) / GRID.window) @ (hann * wave_in[start : start + GRID.window])
    expected = np.log10(np.maximum(mel_bank(GRID).numpy() @ np.abs(spectrum / (hann.sum() / 2)) ** 2, 1e-8))
    x = CODEC.encode([wave_in])[""][0, 0, :, frame]
    assert np.allclose(x * CODEC.std + CODEC.mean, expected, atol=1e-3)


def test_a_tone_of_full_scale_has_magnitude_one() -> None:
    bins = 64
    tone = torch.sin(2 * torch.pi * bins / GRID.window * torch.arange(GRID.samples)).float()
    magnitude = CODEC._spectrum(tone).abs()[:, 10] / (CODEC._hann.sum() / 2)
    assert magnitude[bins - 1 : bins + 2].tolist() == pytest.approx([0.5, 1.0, 0.5], abs=1e-4)


def test_silence_is_the_floor_and_stays_silent() -> None:
    x = CODEC.encode([np.zeros(10, np.float32)])
    assert torch.allclose(x[""][0, 0] * CODEC.std + CODEC.mean[:, None], torch.tensor(-8.0))
    assert np.abs(CODEC.decode(x)[0]).max() == 0


@pytest.mark.parametrize("mels", [20, 64])
def test_unmix_is_as_good_as_an_exact_solver(mels: int) -> None:
    bank = mel_bank(SoundConfig(mels=mels))
    assert bool((bank.sum(1) > 0).all())
    mel = bank @ torch.rand(257, 3, generator=torch.Generator().manual_seed(0)) ** 4
    ours = unmix(bank, mel)
    exact = [nnls(bank.double().numpy(), column.double().numpy())[1] for column in mel.T]
    assert bool((ours >= 0).all())
    assert bool(((bank @ ours - mel).norm(dim=0) <= torch.tensor(exact) + 0.02 * mel.norm(dim=0)).all())


def test_short_sounds_are_filled_and_long_ones_cut() -> None:
    tone = np.sin(T).astype(np.float32)
    assert np.array_equal(CODEC.check(tone[:100]), np.r_[tone[:100], np.zeros(len(T) - 100)])
    assert np.array_equal(CODEC.check(np.r_[tone, tone]), tone)


def write_wav(path: Path, data: bytes, *, width: int = 2, channels: int = 1, rate: int = 8000) -> None:
    with wave.open(str(path), "wb") as wav:
        wav.setparams((channels, width, rate, 0, "NONE", ""))
        wav.writeframes(data)


@pytest.mark.parametrize(
    ("width", "data"),
    [
        (1, bytes([128, 192, 64, 0])),
        (2, struct.pack("<4h", 0, 2**14, -(2**14), -(2**15))),
        (3, b"".join(struct.pack("<i", x)[:3] for x in (0, 2**22, -(2**22), -(2**23)))),
        (4, struct.pack("<4i", 0, 2**30, -(2**30), -(2**31))),
    ],
)
def test_every_width_of_pcm(width: int, data: bytes, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", data, width=width)
    assert CODEC.read(tmp_path / "a.wav")[:4].tolist() == [0, 0.5, -0.5, -1]
    write_wav(tmp_path / "b.wav", data, width=width, channels=2)
    assert CODEC.read(tmp_path / "b.wav")[:2].tolist() == [0.25, -0.75]


@pytest.mark.parametrize("rate", [6000, 16_000, 44_100])
def test_resampling_keeps_a_tone(rate: int) -> None:
    tone = np.sin(2 * np.pi * 100 * np.arange(rate) / rate)  # whole periods: exact but for rounding
    assert np.allclose(
        resample(tone.astype(np.float32), rate, 8000), np.sin(2 * np.pi * 100 * np.arange(8000) / 8000), atol=1e-5
    )
    high = np.sin(2 * np.pi * 5000 * np.arange(16_000) / 16_000).astype(np.float32)
    assert np.abs(resample(high, 16_000, 8000)).max() < 1e-5  # above what 8 kHz can hold


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros(5, np.int16), "int16"),
        (np.zeros((2, 5), np.float32), "shape"),
        (np.zeros(0, np.float32), "shape"),
        (np.array([0, np.nan], np.float32), "NaN"),
        (np.array([0, 1.5], np.float32), "beyond"),
        (np.zeros(8000 * 601, np.float32), "601 seconds"),
        ([0.0], "list"),
    ],
)
def test_refused(raw: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CODEC.check(raw)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_wav(path, bytes(2000))
    whole = path.read_bytes()
    as_float = whole[:20] + b"\x03\x00" + whole[22:]
    for data in (b"", b"RIFF", b"ID3\x03 music", whole[:30], whole[:1000], whole[:44], as_float):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"sound file|wav file"):
            CODEC.read(path)
    write_wav(path, b"")
    with pytest.raises(ValueError, match="empty"):
        CODEC.read(path)


def test_options() -> None:
    for wrong in (
        {"hop": 300},
        {"window": 500},
        {"mels": 0},
        {"frames": 16_384, "window": 8192, "hop": 4096},
        {"pitch": 1},
    ):
        with pytest.raises(ValueError, match="sound modality"):
            Sound.fit(chirps(), **wrong)
    with pytest.raises(ValueError, match="no sounds"):
        Sound.fit([])
