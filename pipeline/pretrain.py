"""Train the small backbones that `shapes` uses, on scenes of seeds that belong to no split.

What they are told: per cell of the appearance map, which shape of which colour lies there and where its box is;
per cell of the motion map, which motion the object there is doing; per sentence, which colour, shape and motion
it names. Nothing about queries, spans or tubes. The heads are thrown away, the backbones are shipped.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from pipeline.datasets.shapes import render
from pipeline.datasets.shapes.make import scene_seed
from pipeline.datasets.shapes.scene import COLORS, MOTIONS, SHAPES, Scene, make_scene
from pipeline.datasets.shapes.sentences import PHRASES, Sentence, write_sentences
from pipeline.encoders.image_geometry import pad_to_square, resize
from pipeline.encoders.text import TOKENIZER_FILE, tokenize, train_tokenizer
from pipeline.sampling import sample_clip_frames
from pipeline.weights.load import build_encoder

StageProgressCallback = Callable[[str, int, int], None]
CLIP_SECONDS = 0.8
"""Seconds a tiny motion clip spans, in training as in extraction."""


def pretrain_tiny(
    output_dir: Path,
    seed: int,
    num_scenes: int,
    steps: dict[str, int],
    num_workers: int,
    progress: StageProgressCallback,
) -> dict[str, float]:
    """Train all three backbones and write `out/{appearance,motion,text}.safetensors`; returns held-out accuracies."""
    torch.manual_seed(seed)
    seeds = [scene_seed(seed, "pretrain", index) for index in range(num_scenes)]
    with ProcessPoolExecutor(num_workers) as pool:
        films = []
        for done, film in enumerate(pool.map(_render_scene, seeds, chunksize=4), start=1):
            films.append(film)
            progress("drawing scenes", done, num_scenes)
    held = max(1, num_scenes // 10)
    report: dict[str, float] = {}
    for product, train in (("appearance", _train_appearance), ("motion", _train_motion)):
        encoder = build_encoder(product, "tiny").train()
        report |= train(encoder, films[held:], films[:held], steps[product], seed, progress)
        _save_encoder(encoder, output_dir / f"{product}.safetensors")
    report |= _train_text(output_dir, films, steps["text"], seed, progress)
    return report


def generate_sentences() -> list[str]:
    """Every sentence the grammar of `shapes` can say: what the shipped tokenizer learns its merges from."""
    said = []
    for phrases in PHRASES.values():
        for does in phrases:
            said += [f"the {colour} {shape} {does}." for colour in COLORS for shape in SHAPES]
            said += [f"which {shape} {does}?" for shape in SHAPES] + [
                f"what {colour} thing {does}?" for colour in COLORS
            ]
            said.append(f"what {does}?")
    return said


RenderedScene = tuple[Scene, np.ndarray, np.ndarray]
"""A scene, its frames `[n, h, w, 3]` uint8 and its boxes `[things, n, 4]` xyxy pixels."""


def _render_scene(seed: int) -> RenderedScene:
    scene = make_scene(seed)
    return (
        scene,
        np.stack(list(render.render_frames(scene))),
        np.stack([render.compute_boxes(scene, thing) for thing in scene.objects]),
    )


def assign_cells_to_objects(
    boxes: np.ndarray,
    rows: int,
    columns: int,
    map_size: tuple[float, float],
    offset: tuple[float, float] = (0, 0),
) -> np.ndarray:
    """Which object each cell belongs to, `[rows, columns]`, −1 for none, from xyxy boxes `[things, 4]`.

    `size` is the (width, height) the map covers, `offset` where the picture starts in it. A cell belongs to the
    smallest box that holds its centre; a box that holds none owns the cell nearest its own centre.
    """
    x = (np.arange(columns) + 0.5) * map_size[0] / columns - offset[0]
    y = (np.arange(rows) + 0.5) * map_size[1] / rows - offset[1]
    owner = np.full((rows, columns), -1)
    extent = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    for thing in np.argsort(-extent):
        x1, y1, x2, y2 = boxes[thing]
        inside = ((y >= y1) & (y < y2))[:, None] & ((x >= x1) & (x < x2))[None, :]
        if not inside.any():
            inside[np.abs(y - (y1 + y2) / 2).argmin(), np.abs(x - (x1 + x2) / 2).argmin()] = True
        owner[inside] = thing
    return owner


def _train_appearance(
    encoder: nn.Module,
    train: list[RenderedScene],
    held: list[RenderedScene],
    steps: int,
    seed: int,
    progress: StageProgressCallback,
) -> dict[str, float]:
    head = nn.Conv2d(128, len(COLORS) + len(SHAPES) + 1 + 4, 1)
    rng = np.random.default_rng([seed, 10])

    def batch(films: list[RenderedScene], count: int) -> tuple[Tensor, Tensor, Tensor]:
        pictures, owners, targets = [], [], []
        for film in rng.choice(len(films), count):
            scene, frames, boxes = films[film]
            index = rng.integers(scene.frame_count)
            height, width = frames.shape[1:3]
            owner = assign_cells_to_objects(
                boxes[:, index], height // 16, width // 16, (width, height)
            )
            looks = np.array(
                [(COLORS.index(t.color), SHAPES.index(t.shape)) for t in scene.objects]
            )
            target = np.concatenate([looks[owner], boxes[owner, index]], -1)
            pictures.append(torch.from_numpy(frames[index]).permute(2, 0, 1))
            owners.append(torch.from_numpy(owner))
            targets.append(torch.from_numpy(target).float())
        return torch.stack(pictures), torch.stack(owners) >= 0, torch.stack(targets)

    def judge(maps: Tensor, owned: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
        out = head(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        colour, shape, object_, box = out.split([len(COLORS), len(SHAPES), 1, 4], -1)
        rows, columns = owned.shape[1:]
        centre = (
            torch.stack(
                torch.meshgrid(
                    torch.arange(columns) + 0.5, torch.arange(rows) + 0.5, indexing="xy"
                ),
                -1,
            )
            * 16
        )
        wanted = (target[..., 2:] - torch.cat([centre, centre], -1)) / 16
        loss = functional.binary_cross_entropy_with_logits(object_[..., 0], owned.float())
        loss = loss + functional.cross_entropy(colour[owned], target[..., 0][owned].long())
        loss = loss + functional.cross_entropy(shape[owned], target[..., 1][owned].long())
        loss = loss + functional.l1_loss(box[owned], wanted[owned]) * 2
        right = {
            "appearance colour": float((colour.argmax(-1) == target[..., 0])[owned].float().mean()),
            "appearance shape": float((shape.argmax(-1) == target[..., 1])[owned].float().mean()),
            "appearance box error px": float((box.detach() - wanted)[owned].abs().mean() * 16),
        }
        return loss, right

    return _fit_encoder(
        "appearance",
        encoder,
        head,
        lambda n: batch(train, n),
        lambda n: batch(held, n),
        judge,
        steps,
        32,
        _count_validation_samples(held),
        progress,
    )


def _train_motion(
    encoder: nn.Module,
    train: list[RenderedScene],
    held: list[RenderedScene],
    steps: int,
    seed: int,
    progress: StageProgressCallback,
) -> dict[str, float]:
    head = nn.Conv2d(384, len(MOTIONS) + 1, 1)
    rng = np.random.default_rng([seed, 20])

    def batch(films: list[RenderedScene], count: int) -> tuple[Tensor, Tensor, Tensor]:
        clips, owners, labels = [], [], []
        for film in rng.choice(len(films), count):
            scene, frames, boxes = films[film]
            height, width = frames.shape[1:3]
            seconds = np.arange(scene.frame_count) / scene.fps
            centre = rng.uniform(0, seconds[-1])
            middle = min(int(centre * scene.fps), scene.frame_count - 1)
            picked = torch.from_numpy(
                frames[sample_clip_frames(seconds, centre, CLIP_SECONDS, 8)]
            ).permute(0, 3, 1, 2)
            clips.append(resize(pad_to_square(picked), (128, 128)).permute(1, 0, 2, 3))
            side = max(width, height)
            owner = assign_cells_to_objects(
                boxes[:, middle], 8, 8, (side, side), ((side - width) / 2, (side - height) / 2)
            )
            motion = [
                next(MOTIONS.index(e.motion) for e in thing.events if e.begin <= middle < e.end)
                for thing in scene.objects
            ]
            owners.append(torch.from_numpy(owner))
            labels.append(torch.from_numpy(np.array([*motion, len(MOTIONS)])[owner]))
        return torch.stack(clips), torch.stack(owners) >= 0, torch.stack(labels)

    def judge(maps: Tensor, owned: Tensor, label: Tensor) -> tuple[Tensor, dict[str, float]]:
        out = head(maps.permute(0, 3, 1, 2))
        weight = torch.ones(len(MOTIONS) + 1)
        weight[-1] = 0.2
        loss = functional.cross_entropy(out, label, weight=weight)
        return loss, {"motion": float((out.argmax(1) == label)[owned].float().mean())}

    return _fit_encoder(
        "motion",
        encoder,
        head,
        lambda n: batch(train, n),
        lambda n: batch(held, n),
        judge,
        steps,
        24,
        _count_validation_samples(held),
        progress,
    )


def _train_text(
    out: Path, films: list[RenderedScene], steps: int, seed: int, progress: StageProgressCallback
) -> dict[str, float]:
    if out.resolve() == TOKENIZER_FILE.parent.resolve() or not TOKENIZER_FILE.exists():
        train_tokenizer(generate_sentences(), TOKENIZER_FILE)
    encoder = build_encoder("text", "tiny").train()
    names = (COLORS, SHAPES, MOTIONS)
    head = nn.Linear(64, sum(len(part) + 1 for part in names))
    rng = np.random.default_rng([seed, 30])
    pool = [(s.text, film[0], s) for film in films for s in write_sentences(film[0], 8, rng)]
    others = [make_scene(scene_seed(seed, "pretrain", len(films) + index)) for index in range(32)]
    held = [(s.text, scene, s) for scene in others for s in write_sentences(scene, 8, rng)]

    def batch(pool: list[tuple[str, Scene, Sentence]], count: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = [pool[i] for i in rng.choice(len(pool), count)]
        tokens, mask = tokenize([text for text, _, _ in rows])
        labels = []
        for text, scene, sentence in rows:
            colour, shape = scene.objects[sentence.object_index].color_and_shape
            labels.append(
                [
                    COLORS.index(colour) if colour in text else len(COLORS),
                    SHAPES.index(shape) if shape in text else len(SHAPES),
                    MOTIONS.index(sentence.event.motion),
                ]
            )
        return tokens, mask, torch.tensor(labels)

    def judge(states: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        parts = head(states[:, 0]).split([len(part) + 1 for part in names], -1)
        everywhere = head((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).split(
            [len(part) + 1 for part in names], -1
        )
        loss = sum(
            functional.cross_entropy(p, labels[:, i])
            for group in (parts, everywhere)
            for i, p in enumerate(group)
        )
        right = torch.stack([p.argmax(-1) == labels[:, i] for i, p in enumerate(parts)]).all(0)
        return torch.as_tensor(loss), {"text": float(right.float().mean())}

    report = _fit_encoder(
        "text",
        encoder,
        head,
        lambda n: batch(pool, n),
        lambda n: batch(held, n),
        judge,
        steps,
        64,
        256,
        progress,
    )
    _save_encoder(encoder, out / "text.safetensors")
    return report


def _fit_encoder(
    name: str,
    encoder: nn.Module,
    head: nn.Module,
    train: Callable[[int], tuple[Tensor, Tensor, Tensor]],
    held: Callable[[int], tuple[Tensor, Tensor, Tensor]],
    judge: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, float]]],
    steps: int,
    size: int,
    judged: int,
    progress: StageProgressCallback,
) -> dict[str, float]:
    """Train encoder and head in steps of `size` samples (one-cycle AdamW), then judge them on `judged` held-out ones."""
    rate = 3e-3 if name != "text" else 1e-3
    parameters = [*encoder.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=steps, pct_start=0.1
    )
    for step in range(steps):
        inputs, where, target = train(size)
        states = encoder(inputs, where) if name == "text" else encoder(inputs)
        loss, _ = judge(states, where, target)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        progress(f"training {name} (loss {float(loss.detach()):.3f})", step + 1, steps)
    encoder.eval()
    with torch.no_grad():
        inputs, where, target = held(judged)
        states = encoder(inputs, where) if name == "text" else encoder(inputs)
        return judge(states, where, target)[1]


def _count_validation_samples(held: list[RenderedScene]) -> int:
    """How many samples of the held-out scenes are judged."""
    return min(256, 8 * len(held))


def _save_encoder(encoder: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in encoder.state_dict().items()}, path)
