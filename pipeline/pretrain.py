"""Training of the small backbones that `shapes` uses, on scenes of seeds outside all splits.

The labels are local and know nothing of queries, spans or tubes:

- appearance, per cell: color and shape of the object in the cell, and its box;
- motion, per cell: the current motion of the object in the cell;
- text, per sentence: the color, shape and motion that the sentence names.

The heads are discarded and the backbones are shipped.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from pipeline.datasets.shapes import render
from pipeline.datasets.shapes.make import scene_seed
from pipeline.datasets.shapes.scene import COLORS, MOTIONS, SHAPES, Scene, SceneObject, make_scene
from pipeline.datasets.shapes.sentences import PHRASES, Sentence, write_sentences
from pipeline.encoders.image_geometry import pad_to_square, resize
from pipeline.encoders.text import TOKENIZER_FILE, tokenize, train_tokenizer
from pipeline.sampling import sample_clip_frames
from pipeline.weights.load import build_encoder

StageProgressCallback = Callable[[str, int, int], None]
"""Function of the stage's name, the completed steps and all steps of the stage."""
CLIP_SECONDS = 0.8
"""Duration of a tiny motion clip in seconds, in training as in extraction."""
CLIP_FRAMES = 8
"""Frames of a tiny motion clip."""
CLIP_SIDE = 128
"""Side of a tiny motion clip in pixels."""
MOTION_CELLS = 8
"""Side of a tiny motion map in cells."""
APPEARANCE_STRIDE = 16
"""Pixels per cell of a tiny appearance map."""
BACKGROUND_WEIGHT = 0.2
"""Weight of cells without an object in the motion loss."""

RenderedScene = tuple[Scene, np.ndarray, np.ndarray]
"""A scene, its frames `[n, h, w, 3]` uint8 and its boxes `[objects, n, 4]`, xyxy in pixels."""
LabeledSentence = tuple[str, Scene, Sentence]
"""A sentence's text, its scene and its meaning."""
Batch = tuple[Tensor, Tensor, Tensor]
"""Encoder input, mask and labels.

The mask is True at cells with an object, `[n, h, w]`, or at tokens, `[n, L]`.
"""
LossFunction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, float]]]
"""Function of encoder output, mask and labels. It returns the loss and named accuracies."""


@dataclass(frozen=True)
class _PretrainingTask:
    """Data, head and loss with which one encoder is trained.

    Attributes:
        name: Product of the encoder.
        head: Trained with the encoder, then discarded.
        sample_train: Draws a training batch of a given size.
        sample_validation: Draws a batch of a given size from held-out scenes.
        compute_loss: Loss and accuracies of a batch.
        batch_size: Samples per step.
        num_validation: Held-out samples of the final evaluation.
        learning_rate: Peak learning rate.
    """

    name: str
    head: nn.Module
    sample_train: Callable[[int], Batch]
    sample_validation: Callable[[int], Batch]
    compute_loss: LossFunction
    batch_size: int
    num_validation: int
    learning_rate: float


def pretrain_tiny(
    output_dir: Path,
    seed: int,
    num_scenes: int,
    steps: dict[str, int],
    num_workers: int,
    progress: StageProgressCallback,
) -> dict[str, float]:
    """Train all three tiny backbones and write `{appearance,motion,text}.safetensors`.

    Args:
        output_dir: Folder of the files.
        seed: Seed of scenes, batches and initial weights.
        num_scenes: Scenes to render. One tenth of them is held out.
        steps: Training steps by product.
        num_workers: Processes that render scenes.
        progress: Called after each scene and each step.

    Returns:
        Accuracies on held-out scenes, by name.
    """
    torch.manual_seed(seed)

    # Render the scenes in parallel; the order is that of the seeds.
    seeds = [scene_seed(seed, "pretrain", index) for index in range(num_scenes)]
    rendered: list[RenderedScene] = []
    with ProcessPoolExecutor(num_workers) as pool:
        for rendered_scene in pool.map(_render_scene, seeds, chunksize=4):
            rendered.append(rendered_scene)
            progress("drawing scenes", len(rendered), num_scenes)

    # Train the visual encoders; the first scenes are held out.
    num_held_out = max(1, num_scenes // 10)
    train_scenes = rendered[num_held_out:]
    validation_scenes = rendered[:num_held_out]
    report: dict[str, float] = {}
    for product, build_task in (
        ("appearance", _build_appearance_task),
        ("motion", _build_motion_task),
    ):
        encoder = build_encoder(product, "tiny").train()
        task = build_task(train_scenes, validation_scenes, seed)
        report |= _fit_encoder(encoder, task, steps[product], progress)
        _save_encoder(encoder, output_dir / f"{product}.safetensors")

    # The shipped tokenizer is trained only if its own folder is written, or if it is missing.
    is_shipped = output_dir.resolve() == TOKENIZER_FILE.parent.resolve()
    if is_shipped or not TOKENIZER_FILE.exists():
        train_tokenizer(generate_sentences(), TOKENIZER_FILE)

    # Sentences need no frames: the text encoder trains on all scenes.
    encoder = build_encoder("text", "tiny").train()
    task = _build_text_task([scene for scene, _, _ in rendered], seed)
    report |= _fit_encoder(encoder, task, steps["text"], progress)
    _save_encoder(encoder, output_dir / "text.safetensors")
    return report


def generate_sentences() -> list[str]:
    """Generate every sentence of the grammar of `shapes`.

    The shipped tokenizer learns its merges from them.

    Returns:
        The sentences, each once.
    """
    sentences = []
    for phrases in PHRASES.values():
        for phrase in phrases:
            for color in COLORS:
                for shape in SHAPES:
                    sentences.append(f"the {color} {shape} {phrase}.")
            for shape in SHAPES:
                sentences.append(f"which {shape} {phrase}?")
            for color in COLORS:
                sentences.append(f"what {color} thing {phrase}?")
            sentences.append(f"what {phrase}?")
    return sentences


def _render_scene(seed: int) -> RenderedScene:
    """Make and render the scene of a seed."""
    scene = make_scene(seed)
    frames = np.stack(list(render.render_frames(scene)))
    boxes = [render.compute_boxes(scene, scene_object) for scene_object in scene.objects]
    return scene, frames, np.stack(boxes)


def assign_cells_to_objects(
    boxes: np.ndarray,
    rows: int,
    columns: int,
    map_size: tuple[float, float],
    offset: tuple[float, float] = (0, 0),
) -> np.ndarray:
    """Assign each cell of a map to an object.

    A cell belongs to the smallest box that contains its center. A box that contains no center gets
    the cell whose center is nearest to its own.

    Args:
        boxes: `[objects, 4]`, xyxy in pixels of the image.
        rows: Rows of the map.
        columns: Columns of the map.
        map_size: (width, height) in pixels that the map covers.
        offset: (x, y) of the image's corner in the map, in pixels.

    Returns:
        `[rows, columns]`, object indices, −1 for cells without an object.
    """
    # Centers of the cells in pixels of the image.
    x = (np.arange(columns) + 0.5) * map_size[0] / columns - offset[0]
    y = (np.arange(rows) + 0.5) * map_size[1] / rows - offset[1]

    # Smaller boxes come later and overwrite larger ones.
    cell_objects = np.full((rows, columns), -1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    for object_index in np.argsort(-areas):
        x1, y1, x2, y2 = boxes[object_index]
        is_in_rows = (y >= y1) & (y < y2)
        is_in_columns = (x >= x1) & (x < x2)
        is_inside = is_in_rows[:, None] & is_in_columns[None, :]  # [rows, columns]
        if not is_inside.any():
            nearest_row = np.abs(y - (y1 + y2) / 2).argmin()
            nearest_column = np.abs(x - (x1 + x2) / 2).argmin()
            is_inside[nearest_row, nearest_column] = True
        cell_objects[is_inside] = object_index
    return cell_objects


def _build_appearance_task(
    train_scenes: list[RenderedScene], validation_scenes: list[RenderedScene], seed: int
) -> _PretrainingTask:
    """Build the task of the appearance encoder; its head predicts color, shape, object and box."""
    head = nn.Conv2d(128, len(COLORS) + len(SHAPES) + 1 + 4, 1)
    rng = np.random.default_rng([seed, 10])
    return _PretrainingTask(
        name="appearance",
        head=head,
        sample_train=partial(_sample_appearance_batch, train_scenes, rng),
        sample_validation=partial(_sample_appearance_batch, validation_scenes, rng),
        compute_loss=partial(_appearance_loss, head),
        batch_size=32,
        num_validation=_count_validation_samples(validation_scenes),
        learning_rate=3e-3,
    )


def _sample_appearance_batch(
    scenes: list[RenderedScene], rng: np.random.Generator, batch_size: int
) -> Batch:
    """Draw frames.

    Returns images `[n, 3, h, w]`, object mask `[n, rows, columns]` and labels
    `[n, rows, columns, 6]`: color, shape, box (xyxy in pixels).
    """
    images = []
    object_masks = []
    labels = []
    for scene_index in rng.choice(len(scenes), batch_size):
        scene, frames, boxes = scenes[scene_index]
        frame_index = rng.integers(scene.frame_count)
        height, width = frames.shape[1:3]

        cell_objects = assign_cells_to_objects(
            boxes[:, frame_index],
            height // APPEARANCE_STRIDE,
            width // APPEARANCE_STRIDE,
            (width, height),
        )

        # Cells without an object get the labels of the last one; the mask excludes them.
        classes = []
        for scene_object in scene.objects:
            classes.append((COLORS.index(scene_object.color), SHAPES.index(scene_object.shape)))
        cell_classes = np.array(classes)[cell_objects]  # [rows, columns, 2]
        cell_boxes = boxes[cell_objects, frame_index]  # [rows, columns, 4]
        cell_labels = np.concatenate([cell_classes, cell_boxes], -1)

        images.append(torch.from_numpy(frames[frame_index]).permute(2, 0, 1))
        object_masks.append(torch.from_numpy(cell_objects >= 0))
        labels.append(torch.from_numpy(cell_labels).float())
    return torch.stack(images), torch.stack(object_masks), torch.stack(labels)


def _appearance_loss(
    head: nn.Module, maps: Tensor, object_mask: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of maps `[n, rows, columns, C]`, and the accuracies at cells with objects."""
    logits = head(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    color_logits, shape_logits, object_logits, pred_boxes = logits.split(
        [len(COLORS), len(SHAPES), 1, 4], -1
    )

    # Boxes are predicted relative to the center of their cell, in cells.
    rows, columns = object_mask.shape[1:]
    grid = torch.meshgrid(torch.arange(columns) + 0.5, torch.arange(rows) + 0.5, indexing="xy")
    centers = torch.stack(grid, -1) * APPEARANCE_STRIDE  # [rows, columns, 2] pixels
    target_boxes = (labels[..., 2:] - torch.cat([centers, centers], -1)) / APPEARANCE_STRIDE

    # Color, shape and box only count at cells with an object.
    target_colors = labels[..., 0]
    target_shapes = labels[..., 1]
    loss = functional.binary_cross_entropy_with_logits(object_logits[..., 0], object_mask.float())
    loss = loss + functional.cross_entropy(
        color_logits[object_mask], target_colors[object_mask].long()
    )
    loss = loss + functional.cross_entropy(
        shape_logits[object_mask], target_shapes[object_mask].long()
    )
    loss = loss + functional.l1_loss(pred_boxes[object_mask], target_boxes[object_mask]) * 2

    is_color_correct = color_logits.argmax(-1) == target_colors
    is_shape_correct = shape_logits.argmax(-1) == target_shapes
    box_errors = (pred_boxes.detach() - target_boxes)[object_mask].abs()
    accuracies = {
        "appearance color": float(is_color_correct[object_mask].float().mean()),
        "appearance shape": float(is_shape_correct[object_mask].float().mean()),
        "appearance box error px": float(box_errors.mean() * APPEARANCE_STRIDE),
    }
    return loss, accuracies


def _build_motion_task(
    train_scenes: list[RenderedScene], validation_scenes: list[RenderedScene], seed: int
) -> _PretrainingTask:
    """Build the task of the motion encoder; its head predicts the motion, or no object."""
    head = nn.Conv2d(384, len(MOTIONS) + 1, 1)
    rng = np.random.default_rng([seed, 20])
    return _PretrainingTask(
        name="motion",
        head=head,
        sample_train=partial(_sample_motion_batch, train_scenes, rng),
        sample_validation=partial(_sample_motion_batch, validation_scenes, rng),
        compute_loss=partial(_motion_loss, head),
        batch_size=24,
        num_validation=_count_validation_samples(validation_scenes),
        learning_rate=3e-3,
    )


def _sample_motion_batch(
    scenes: list[RenderedScene], rng: np.random.Generator, batch_size: int
) -> Batch:
    """Draw clips.

    Returns clips `[n, 3, T, side, side]`, object mask `[n, cells, cells]` and motion labels
    `[n, cells, cells]`.
    """
    clips = []
    object_masks = []
    labels = []
    for scene_index in rng.choice(len(scenes), batch_size):
        scene, frames, boxes = scenes[scene_index]
        height, width = frames.shape[1:3]

        # Draw a clip around a random time.
        seconds = np.arange(scene.frame_count) / scene.fps
        center = rng.uniform(0, seconds[-1])
        middle_frame = min(int(center * scene.fps), scene.frame_count - 1)
        clip_indices = sample_clip_frames(seconds, center, CLIP_SECONDS, CLIP_FRAMES)
        clip = torch.from_numpy(frames[clip_indices]).permute(0, 3, 1, 2)  # [T, 3, h, w]
        clip = resize(pad_to_square(clip), (CLIP_SIDE, CLIP_SIDE))

        # The map covers the padded square.
        side = max(width, height)
        cell_objects = assign_cells_to_objects(
            boxes[:, middle_frame],
            MOTION_CELLS,
            MOTION_CELLS,
            (side, side),
            ((side - width) / 2, (side - height) / 2),
        )

        # The last label, at index −1, is that of cells without an object.
        motions = [_find_motion(item, middle_frame) for item in scene.objects]
        motion_labels = np.array([*motions, len(MOTIONS)])

        clips.append(clip.permute(1, 0, 2, 3))
        object_masks.append(torch.from_numpy(cell_objects >= 0))
        labels.append(torch.from_numpy(motion_labels[cell_objects]))
    return torch.stack(clips), torch.stack(object_masks), torch.stack(labels)


def _find_motion(scene_object: SceneObject, frame_index: int) -> int:
    """Return the index in `MOTIONS` of an object's motion at a frame."""
    for event in scene_object.events:
        if event.begin <= frame_index < event.end:
            return MOTIONS.index(event.motion)
    raise ValueError(f"the object has no motion at frame {frame_index}: events must cover a scene")


def _motion_loss(
    head: nn.Module, maps: Tensor, object_mask: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of maps `[n, cells, cells, C]`, and the accuracy at cells with objects."""
    logits = head(maps.permute(0, 3, 1, 2))  # [n, motions + 1, cells, cells]
    weight = torch.ones(len(MOTIONS) + 1)
    weight[-1] = BACKGROUND_WEIGHT
    loss = functional.cross_entropy(logits, labels, weight=weight)

    is_correct = logits.argmax(1) == labels
    return loss, {"motion": float(is_correct[object_mask].float().mean())}


def _build_text_task(scenes: list[Scene], seed: int) -> _PretrainingTask:
    """Build the task of the text encoder; its head predicts color, shape and motion.

    Validation uses sentences of 32 other scenes.
    """
    head = nn.Linear(64, sum(_text_class_counts()))
    rng = np.random.default_rng([seed, 30])

    validation_scenes = []
    for index in range(32):
        validation_scenes.append(make_scene(scene_seed(seed, "pretrain", len(scenes) + index)))
    train_sentences = _write_scene_sentences(scenes, rng)
    validation_sentences = _write_scene_sentences(validation_scenes, rng)
    return _PretrainingTask(
        name="text",
        head=head,
        sample_train=partial(_sample_text_batch, train_sentences, rng),
        sample_validation=partial(_sample_text_batch, validation_sentences, rng),
        compute_loss=partial(_text_loss, head),
        batch_size=64,
        num_validation=256,
        learning_rate=1e-3,
    )


def _text_class_counts() -> list[int]:
    """Return the numbers of color, shape and motion classes, each with one for "not named"."""
    return [len(COLORS) + 1, len(SHAPES) + 1, len(MOTIONS) + 1]


def _write_scene_sentences(scenes: list[Scene], rng: np.random.Generator) -> list[LabeledSentence]:
    """Write up to eight sentences about each scene."""
    sentences = []
    for scene in scenes:
        for sentence in write_sentences(scene, 8, rng):
            sentences.append((sentence.text, scene, sentence))
    return sentences


def _sample_text_batch(
    sentences: list[LabeledSentence], rng: np.random.Generator, batch_size: int
) -> Batch:
    """Draw sentences; return token ids `[n, L]`, mask `[n, L]` and labels `[n, 3]`."""
    samples = [sentences[index] for index in rng.choice(len(sentences), batch_size)]
    tokens, mask = tokenize([text for text, _, _ in samples])

    # The last class of color and shape means that the sentence does not name it.
    labels = []
    for text, scene, sentence in samples:
        color, shape = scene.objects[sentence.object_index].color_and_shape
        color_label = COLORS.index(color) if color in text else len(COLORS)
        shape_label = SHAPES.index(shape) if shape in text else len(SHAPES)
        labels.append([color_label, shape_label, MOTIONS.index(sentence.event.motion)])
    return tokens, mask, torch.tensor(labels)


def _text_loss(
    head: nn.Module, states: Tensor, mask: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of token states `[n, L, C]`, and the share of fully correct sentences.

    The first token's state and the mean over tokens are both trained.
    """
    class_counts = _text_class_counts()
    first_logits = head(states[:, 0]).split(class_counts, -1)
    mean_states = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    mean_logits = head(mean_states).split(class_counts, -1)

    loss = torch.zeros(())
    for class_logits in (first_logits, mean_logits):
        for column, logits in enumerate(class_logits):
            loss = loss + functional.cross_entropy(logits, labels[:, column])

    # A sentence is correct if color, shape and motion are.
    correct_columns = []
    for column, logits in enumerate(first_logits):
        correct_columns.append(logits.argmax(-1) == labels[:, column])
    is_correct = torch.stack(correct_columns).all(0)
    return loss, {"text": float(is_correct.float().mean())}


def _fit_encoder(
    encoder: nn.Module, task: _PretrainingTask, steps: int, progress: StageProgressCallback
) -> dict[str, float]:
    """Train encoder and head (one-cycle AdamW), then evaluate them on held-out samples."""
    parameters = [*encoder.parameters(), *task.head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=task.learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, task.learning_rate, total_steps=steps, pct_start=0.1
    )

    for step in range(steps):
        # Forward
        inputs, mask, labels = task.sample_train(task.batch_size)
        outputs = _run_encoder(encoder, task, inputs, mask)
        loss, _ = task.compute_loss(outputs, mask, labels)

        # Backward
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress(f"training {task.name} (loss {float(loss.detach()):.3f})", step + 1, steps)

    # Evaluate on held-out samples.
    encoder.eval()
    with torch.no_grad():
        inputs, mask, labels = task.sample_validation(task.num_validation)
        outputs = _run_encoder(encoder, task, inputs, mask)
        _, accuracies = task.compute_loss(outputs, mask, labels)
    return accuracies


def _run_encoder(
    encoder: nn.Module, task: _PretrainingTask, inputs: Tensor, mask: Tensor
) -> Tensor:
    """Run an encoder on a batch. Only the text encoder takes the mask."""
    outputs: Tensor = encoder(inputs, mask) if task.name == "text" else encoder(inputs)
    return outputs


def _count_validation_samples(scenes: list[RenderedScene]) -> int:
    """Return the number of held-out samples for a number of held-out scenes."""
    return min(256, 8 * len(scenes))


def _save_encoder(encoder: nn.Module, path: Path) -> None:
    """Write the encoder's weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in encoder.state_dict().items()}
    save_file(state, path)
