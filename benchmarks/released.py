"""The released UniDiffuser's network beside diffusers' pipeline of it: same random weights, same machine, one run.

    python benchmarks/released.py --quick      a small network, below a minute
    python benchmarks/released.py              full size, 952.5 million parameters; most of the time is theirs
    python benchmarks/released.py --model FOLDER    the weights of a converted model
    python benchmarks/released.py --device cuda --batch 8 --steps 20

Both read one set of weights, ours from our format and theirs from the diffusers folder that we export. The two take
turns; a ratio is theirs over ours in one turn, so that above 1 is faster, and its spread is over the turns.

    forward      one evaluation of the network for one sample, all heads
    guided       one guided evaluation of text to picture: one batch of two against two evaluations
    captions     a batch of four: one batched, cached beam search against four without a cache
    picture      a whole text to picture at equal steps, ours by its released solver
    equal error  text to picture by our code: the released 50 steps against the cheapest setting that comes as near to a
                 solution of 200 steps (`equal_error.py`): of other solvers, then with guidance in an interval, reuse of
                 inner blocks, and both. Only for --model: with random weights the flow is not smooth in t, and no
                 solver is better than another
    forward int8 one evaluation with the network in int8 against theirs in floats, and how far it is from our own floats
    start        from the start of a process to the first evaluation of the network
    memory       the most that such a process held, through a whole text to picture; of ours also with int8

With the weights random nothing is said of quality. Prints a table, and with --json writes the numbers.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPT = "a red cat"
GUIDANCE = 7.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """The shape of the parts."""

    dim: int
    depth: int
    side: int
    """Of the latent."""
    words: int
    """Width of the text encoder and of the caption decoder."""
    layers: int
    vocabulary: int
    channels: list[int]
    tokens: int
    """In a caption."""
    steps: int
    """Of a picture at equal steps."""


FULL = Size(
    dim=1536,
    depth=30,
    side=64,
    words=768,
    layers=12,
    vocabulary=50258,
    channels=[128, 256, 512, 512],
    tokens=67,
    steps=5,
)
QUICK = Size(
    dim=256, depth=8, side=16, words=128, layers=2, vocabulary=2000, channels=[32, 32, 64, 64], tokens=16, steps=5
)


def random_model(size: Size) -> Any:
    """`Parts` with random weights that are made when they are read."""
    import torch
    import transformers

    from unidiffuser.checkpoints.released import Piece, Pieces, Reader, parts_of
    from unidiffuser.networks.uvit import UViT, UViTConfig
    from unidiffuser.offload import Weights
    from unidiffuser.pretrained import ARCHITECTURES

    def weights(shapes: dict[str, tuple[int, ...]]) -> Weights:
        def read(name: str) -> torch.Tensor:
            shape, g = shapes[name], torch.Generator().manual_seed(len(name) * 1009 + sum(map(ord, name)))
            if len(shape) == 1:
                return torch.full(shape, float(name.endswith("weight")))
            return torch.randn(shape, generator=g) * torch.Size(shape[1:]).numel() ** -0.5

        return Weights(shapes, read)

    def piece(kind: str, **settings: Any) -> Piece:
        row = ARCHITECTURES[kind]
        with torch.device("meta"):
            state = row.build(settings).state_dict()
        return Piece(settings=settings, weights=weights({row.name(n): tuple(x.shape) for n, x in state.items()}))

    letters = list("abcdefghijklmnopqrstuvwxyz")
    clip = transformers.CLIPTokenizer(
        vocab={
            t: k for k, t in enumerate(["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)])
        },
        merges=[],
    )
    gpt2 = transformers.GPT2Tokenizer(vocab={t: k for k, t in enumerate([*letters, "Ġ", "<|endoftext|>"])}, merges=[])
    config = UViTConfig(
        streams={"text": (77, 64), "image.clip": (1, 512), "image.latent": (4, size.side, size.side)},
        modalities=("image", "text"),
        dim=size.dim,
        depth=size.depth,
        heads=size.dim // 64,
        labels=2,
    )
    with torch.device("meta"):
        shapes = {n: tuple(x.shape) for n, x in UViT(config).state_dict().items()}
    tower = {"num_hidden_layers": size.layers, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    tower |= {"hidden_size": size.words, "intermediate_size": 4 * size.words, "num_attention_heads": size.words // 64}
    return parts_of(
        Pieces(
            name="random",
            network=config,
            weights=weights(shapes),
            autoencoder=piece(
                "autoencoder_kl", block_out_channels=size.channels, layers_per_block=2, norm_num_groups=32,
                in_channels=3, out_channels=3, latent_channels=4, scaling_factor=0.18215,
            ),
            vision=piece("clip_vision", **tower, image_size=224, patch_size=32, projection_dim=512),
            encoder=piece("clip_text", **tower, vocab_size=size.vocabulary, max_position_embeddings=77),
            decoder=piece(
                "gpt2", vocab_size=size.vocabulary, n_positions=1024, n_embd=size.words, n_layer=size.layers,
                n_head=size.words // 64, activation_function="gelu_new", layer_norm_epsilon=1e-5,
            ),
            prefix=weights(
                {
                    "encode_prefix.weight": (64, size.words), "encode_prefix.bias": (64,),
                    "decode_prefix.weight": (size.words, 64), "decode_prefix.bias": (size.words,),
                }
            ),
            clip_tokenizer=Reader(saved=json.loads(clip.backend_tokenizer.to_str()), pad=1),
            gpt2_tokenizer=Reader(saved=json.loads(gpt2.backend_tokenizer.to_str()), end=27),
        )
    )  # fmt: skip


def seconds(work: Callable[[], Any]) -> float:
    """Of one call; a device is waited for."""
    import torch

    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def turns(
    ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, warm: bool = True
) -> tuple[list[float], list[float]]:
    """The seconds of both, in turns, after one turn that is not counted."""
    if warm:
        ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return [a for a, _ in pairs], [b for _, b in pairs]


class Table:
    """The rows that were measured."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        print(f"{'':<14}{'ours':>12}{'theirs':>12}{'ratio':>9}   spread of the ratio")

    def add(self, name: str, ours: list[float], theirs: list[float], unit: str = "s", note: str = "") -> None:
        """One row; the ratio is theirs over ours."""
        ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        a, b, ratio = statistics.median(ours), statistics.median(theirs), statistics.median(ratios)
        print(
            f"{name:<14}{a:>10.4g} {unit:<1}{b:>10.4g} {unit:<1}{ratio:>8.2f}x   {ratios[0]:.2f} to {ratios[-1]:.2f}"
            f"{'   ' * bool(note)}{note}",
            flush=True,
        )
        self.rows[name] = {"ours": ours, "theirs": theirs, "unit": unit, "ratio": ratio, "note": note}


def library_pipeline(folder: Path, device: str, dtype: Any) -> Any:
    """Theirs, quiet."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure(ours_at: Path, theirs_at: Path, size: Size, args: argparse.Namespace) -> Table:
    """Everything that is measured in this process."""
    import torch

    from unidiffuser import UniDiffuser
    from unidiffuser.joint import cat_joints, noise_like

    dtype = getattr(torch, args.dtype)
    model = UniDiffuser.from_pretrained(ours_at, device=args.device, dtype=dtype)
    pipe = library_pipeline(theirs_at, args.device, dtype)
    network, unet, table = model.part.wake(), pipe.unet, Table()
    xt = {s: x.to(args.device, dtype) for s, x in noise_like(model.shapes, [1], "benchmark").items()}
    half, zero = torch.tensor([0.5], device=args.device), torch.tensor([0.0], device=args.device)
    label = torch.tensor([1], device=args.device)

    def library(n_text: float) -> Any:
        n = (torch.tensor(500.0, device=args.device), torch.tensor(n_text, device=args.device))
        return unet(xt["image.latent"], xt["image.clip"], xt["text"], *n, data_type=1)

    with torch.inference_mode():
        t = {"image": half, "text": half}
        a, b = network(xt, t, label), library(500.0)
        error = float((a["image.latent"] - b[0]).float().norm() / b[0].float().norm())
        table.add(
            "forward", *turns(lambda: network(xt, t, label), lambda: library(500.0), args.rounds),
            note=f"the outputs differ by {error:.1e}",
        )  # fmt: skip
        two, times = cat_joints([xt, xt]), {"image": half.expand(2), "text": torch.cat([zero, zero + 1])}
        wanted = ["image.latent", "image.clip"]
        table.add(
            "guided",
            *turns(
                lambda: network(two, times, label.expand(2), wanted),
                lambda: (library(0.0), library(1000.0)),
                args.rounds,
            ),
        )
    measure_captions(table, model, pipe, size, args)
    side = model.modalities["image"].size[0]
    steps = args.steps or size.steps
    options = {"steps": steps, "guidance": GUIDANCE, "n": args.batch, "batch": args.batch}
    mine, other = turns(
        lambda: model.sample("image", text=PROMPT, seed=1, **options),
        lambda: pipe(
            prompt=PROMPT, num_inference_steps=steps, guidance_scale=GUIDANCE + 1, height=side, width=side,
            num_images_per_prompt=args.batch,
        ),
        max(args.rounds // 2, 1),
    )  # fmt: skip
    each = statistics.median(mine) / args.batch
    table.add("picture", mine, other, note=f"{steps} guided steps, batch {args.batch}: {each:.3g} s a picture")
    if args.model:
        measure_equal_error(table, model)
    measure_int8(table, model, lambda: library(500.0), (xt, t, label), args)
    return table


def measure_int8(
    table: Table, model: Any, theirs: Callable[[], Any], inputs: tuple[Any, ...], args: argparse.Namespace
) -> None:
    """One evaluation in int8; the model stays in it."""
    import torch

    with torch.inference_mode():
        exact = model.network(*inputs)
        try:
            model.to(args.device, torch.int8)
        except ValueError as error:
            print(f"{'forward int8':<14}left out: {error}")
            return
        network = model.network
        found = network(*inputs)
        error = max(float((found[s].float() - x.float()).norm() / x.float().norm()) for s, x in exact.items())
        note = f"{error:.1e} from our own {args.dtype}"
        table.add("forward int8", *turns(lambda: network(*inputs), theirs, args.rounds), note=note)


def measure_captions(table: Table, model: Any, pipe: Any, size: Size, args: argparse.Namespace) -> None:
    """A batch of four; theirs goes one by one, so at full size one of them is timed and counted four times."""
    import torch

    from unidiffuser.captions import Captioning, captions
    from unidiffuser.modalities.clip_text import _Continuation

    decoder, count = pipe.text_decoder, 1 if size is FULL else 4
    latents = torch.randn(4, *model.shapes["text"], generator=torch.Generator().manual_seed(1))
    latents = latents.to(args.device, decoder.dtype)
    part = model.modalities["text"].parts["decoder"].wake()
    never, how = part.config.vocab_size, Captioning(max_tokens=size.tokens)

    def ours() -> Any:
        with torch.inference_mode():
            return captions(_Continuation.begin(part, decoder.decode_prefix(latents)), never, how)

    def theirs() -> Any:
        prefixes = decoder.decode_prefix(latents[:count]).split(1)
        return [
            decoder.generate_beam(input_embeds=x, device=args.device, eos_token_id=never, entry_length=size.tokens)[0][
                0
            ]
            for x in prefixes
        ]

    same = [row.tolist() for row in theirs()] == ours()[:count]
    mine, other = turns(ours, theirs, 1 if size is FULL else args.rounds, warm=False)
    note = f"{size.tokens} tokens, {'the same words' if same else 'other words'}"
    table.add("captions", mine, [4 / count * x for x in other], note=note)


def measure_equal_error(table: Table, model: Any) -> None:
    """Ours against the released 50 steps, both of our own code, at equal distance to 200 steps."""
    from equal_error import Found, search

    def tell(name: str, found: Found, released: Found) -> None:
        note = f"{found.setting}, {found.error:.1e}; the released 50 steps, {released.error:.1e}"
        table.add(name, [found.seconds], [released.seconds], note=note)

    for name, found in search(model, PROMPT, GUIDANCE, tell).items():
        if found is None:
            print(f"{name:<14}left out: no setting comes as near as the released 50 steps and computes less")


def worker(whose: str, folder: Path, args: argparse.Namespace) -> None:
    """A process of its own: a text to picture of few steps; says when it first evaluated, and what it held."""
    began = float(os.environ["BEGAN"])
    first: list[float] = []

    def note(*_: Any) -> None:
        first.append(time.time() - began) if not first else None

    import torch

    torch.set_num_threads(args.threads or torch.get_num_threads())
    dtype = getattr(torch, args.dtype)
    if whose == "ours":
        from unidiffuser import UniDiffuser

        model = UniDiffuser.from_pretrained(folder, device=args.device, dtype=dtype, low_memory=args.low_memory)
        model.network.register_forward_pre_hook(note)
        model.sample("image", text=PROMPT, seed=1, steps=2, guidance=GUIDANCE)
    else:
        pipe = library_pipeline(folder, args.device, dtype)
        pipe.unet.register_forward_pre_hook(note)
        side = 8 * pipe.unet.config.sample_size
        pipe(prompt=PROMPT, num_inference_steps=2, guidance_scale=GUIDANCE + 1, height=side, width=side)
    # Of this program alone: getrusage would count what the parent held when it started us.
    [held] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(json.dumps({"first": first[0], "megabytes": int(held) / 1024}))


def measure_starts(table: Table, ours_at: Path, theirs_at: Path, args: argparse.Namespace) -> None:
    """Start-up and memory, each in processes of its own."""
    runs = [("ours", "ours", ours_at, args.dtype), ("theirs", "theirs", theirs_at, args.dtype)]
    runs += [("int8", "ours", ours_at, "int8")] * ("forward int8" in table.rows)
    found: dict[str, list[dict[str, float]]] = {name: [] for name, *_ in runs}
    for _ in range(args.starts):
        for name, whose, folder, dtype in runs:
            command = [sys.executable, __file__, "--worker", whose, str(folder), "--dtype", dtype]
            command += ["--device", args.device, "--threads", str(args.threads)]
            command += ["--quick"] * args.quick + ["--low-memory"] * (args.low_memory and whose == "ours")
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env={**os.environ, "BEGAN": repr(time.time())}
            )
            found[name].append(json.loads(done.stdout.splitlines()[-1]))

    def column(name: str, key: str) -> list[float]:
        return [each[key] for each in found[name]]

    if args.starts:
        table.add("start", column("ours", "first"), column("theirs", "first"))
        table.add("memory", column("ours", "megabytes"), column("theirs", "megabytes"), unit="M")
        if "int8" in found:
            table.add("memory int8", column("int8", "megabytes"), column("theirs", "megabytes"), unit="M")


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description="ours beside diffusers, with random weights")
    parser.add_argument("--quick", action="store_true", help="a small network, below a minute")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None, help="bfloat16 at full size, float32 with --quick")
    parser.add_argument("--threads", type=int, default=0, help="of torch (default: its own choice)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=2, help="processes of each kind; 0 leaves start and memory out")
    parser.add_argument("--batch", type=int, default=1, help="pictures at once")
    parser.add_argument("--steps", type=int, default=None, metavar="N", help="of a picture at equal steps (default: 5)")
    parser.add_argument("--low-memory", action="store_true", help="ours holds one part at a time when it starts")
    parser.add_argument("--model", metavar="FOLDER", help="a converted model in place of random weights")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.dtype = args.dtype or ("float32" if args.quick else "bfloat16")
    return args


def main() -> None:
    """Make the model, measure, print."""
    args = arguments()
    size = QUICK if args.quick else FULL
    warnings.simplefilter("ignore")
    if args.worker:
        worker(args.worker[0], Path(args.worker[1]), args)
        return
    import torch

    from unidiffuser.checkpoints import convert, native

    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        parts = native.read(args.model) if args.model else random_model(size)
        places = (Path(folder) / "ours", Path(folder) / "theirs")
        for place, target in zip(places, convert.TARGETS, strict=True):
            convert.write(place, parts, target, stored=args.dtype)
        count = sum(torch.Size(shape).numel() for shape in parts.weights.shapes.values())
        print(f"{count / 1e6:.1f} million parameters, {args.dtype}, {args.device}, {torch.get_num_threads()} threads")
        table = measure(*places, size, args)
        measure_starts(table, *places, args)
    if args.json:
        Path(args.json).write_text(json.dumps(table.rows, indent=1))


if __name__ == "__main__":
    main()
