"""A complete bundle of a few kilobytes, built with onnx, for tests of the runtime without torch.

The networks are toys, but their shapes, names and files are those of real bundles: people are token rows, and images
depend on the prompt, its word order, people, guidance, noise and timestep.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.bundle.manifest import (
    Defaults,
    GraphInfo,
    Manifest,
    ModelInfo,
    SizeInfo,
    TensorInfo,
    TokenizerInfo,
    TokenTable,
)
from celebctl_runtime.identity import Identity

WIDTH, LENGTH, FACTOR = 8, 77, 4
FAMILY, TABLE_HASH = "toy", "0123456789abcdef"
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}

#: The token embeddings of the average celebrity, per text encoder.
AVERAGE = (np.linspace(-1, 1, 2 * WIDTH, dtype=np.float32).reshape(2, WIDTH),)

_TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
text (int64[batch, 77] input_ids) => (float[batch, 77, 8] context) {
  rows = Gather(token_table, input_ids)
  placed = Mul(rows, places)
  context = Tanh(placed)
}
"""

_STEP = """
<ir_version: 10, opset_import: ["" : 20]>
step (float[2, batch, 4, h, w] state, int64[1] step, float[batch, 4, h, w] noise, float[SIDES, batch, 77, 8] context,
      float[steps, 2, 4] table, float[steps, 3] aux)
  => (float[2, batch, 4, h, w] next_state, int64[1] next_step) {
  zero = Constant <value = int64[1] {0}> ()
  one = Constant <value = int64[1] {1}> ()
  two = Constant <value = int64[1] {2}> ()
  four = Constant <value = int64[1] {4}> ()
  flat = Constant <value = int64[2] {4, -1}> ()
  row = Gather(aux, step)
  scale = Slice(row, zero, one, one)
  time = Slice(row, one, two, one)
  three = Add(two, one)
  guidance = Slice(row, two, three, one)
  first = Slice(state, zero, one, zero)
  x = Mul(first, scale)
  words = ReduceMean <keepdims = 0> (context, two)
  part = Slice(words, zero, four, two)
  tall = Unsqueeze(part, three)
  wide = Unsqueeze(tall, four)
  hurry = Constant <value = float {0.001}> ()
  late = Mul(time, hurry)
  mixed = Add(x, wide)
  later = Add(mixed, late)
  output = Tanh(later)
  GUIDE
  fresh = Unsqueeze(noise, zero)
  seen = Concat <axis = 0> (state, guided, fresh)
  known = Reshape(seen, flat)
  matrices = Gather(table, step)
  matrix = Squeeze(matrices, zero)
  following = MatMul(matrix, known)
  shape = Shape(state)
  next_state = Reshape(following, shape)
  next_step = Add(step, one)
}
"""
_GUIDED = """negative = Slice(output, zero, one, zero)
  positive = Slice(output, one, two, zero)
  difference = Sub(positive, negative)
  pull = Mul(difference, guidance)
  guided = Add(negative, pull)"""
_UNGUIDED = "guided = Identity(output)"

_DECODER = """
<ir_version: 10, opset_import: ["" : 20]>
decoder (float[batch, 4, h, w] latent) => (float[batch, 3, height, width] image) {
  zero = Constant <value = int64[1] {0}> ()
  one = Constant <value = int64[1] {1}> ()
  three = Constant <value = int64[1] {3}> ()
  scales = Constant <value = float[4] {1.0, 1.0, 4.0, 4.0}> ()
  colours = Slice(latent, zero, three, one)
  large = Resize <mode = "nearest"> (colours, , scales)
  image = Tanh(large)
}
"""

_ENCODER = """
<ir_version: 10, opset_import: ["" : 20]>
encoder (float[batch, 3, height, width] image) => (float[batch, 4, h, w] latent) {
  one = Constant <value = int64[1] {1}> ()
  colours = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (image)
  grey = ReduceMean (colours, one)
  latent = Concat <axis = 1> (colours, grey)
}
"""


def write_bundle(
    path: Path,
    *,
    spare_rows: int = 8,
    dtype: str = "float32",
    seed: int = 0,
    encodes: bool = False,
    average: Sequence[NDArray[np.float32]] | None = AVERAGE,
    long_prompts: bool = False,
) -> Bundle:
    """A sealed toy bundle at ``path``: 32 x 32 pixels, width 8, no people.

    ``encodes``: with an image encoder; ``long_prompts``: its step graph takes contexts of any length.
    """
    path.mkdir(parents=True)
    vocabulary = write_tokenizer(path / "tokenizer" / "tokenizer.json")
    generator = np.random.default_rng(seed)
    table = np.zeros((len(vocabulary) + spare_rows, WIDTH), dtype=dtype)
    table[: len(vocabulary)] = generator.standard_normal((len(vocabulary), WIDTH))
    (path / "token_table.bin").write_bytes(table.tobytes())
    places = generator.uniform(0.5, 1.5, (LENGTH, WIDTH)).astype(dtype)
    _save(
        _TEXT.replace("float[", "float16[") if dtype == "float16" else _TEXT, path / "text_encoder.onnx", table, places
    )
    step = _STEP.replace("batch, 77, 8", "batch, tokens, 8") if long_prompts else _STEP
    _save(step.replace("SIDES", "2").replace("GUIDE", _GUIDED), path / "step.onnx")
    _save(step.replace("SIDES", "1").replace("GUIDE", _UNGUIDED), path / "step_nocfg.onnx")
    _save(_DECODER, path / "vae_decoder.onnx")
    if encodes:
        _save(_ENCODER, path / "vae_encoder.onnx")
    bos, eos = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    manifest = Manifest(
        model=ModelInfo("toy", FAMILY, "tests", TABLE_HASH),
        size=SizeInfo(native=(32, 32), multiple=8, vae_factor=FACTOR, display_scale=4),
        dtype=dtype,
        scheduler=SCHEDULER,
        defaults=Defaults(steps=5, guidance=2.5, sampler="ddim"),
        tokenizer=TokenizerInfo("tokenizer/tokenizer.json", LENGTH, bos, eos, eos),
        graphs=_graphs(path),
        token_tables=(
            TokenTable(
                "token_table.bin", len(table), WIDTH, dtype, first_spare_row=len(vocabulary), spare_rows=spare_rows
            ),
        ),
        created_by={"celebctl": "tests"},
        average="" if average is None else "average.bin",
    )
    if average is not None:
        (path / "average.bin").write_bytes(b"".join(rows.astype("<f4").tobytes() for rows in average))
    return Bundle.seal(path, manifest)


def write_tokenizer(path: Path) -> dict[str, int]:
    """A byte-level CLIP tokenizer with a few merges, written as transformers writes CLIP's; returns its vocabulary."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "n"), ("a", "n</w>"), ("an", "d</w>"), ("o", "f</w>"), ("c", "h"), ("e", "s"), ("es", "s</w>")]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    model = BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    cast(Any, tokenizer).add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return vocabulary


def make_identity(name: str, seed: int = 1, width: int = WIDTH, table_hash: str = TABLE_HASH) -> Identity:
    """A random person for the toy bundle."""
    generator = np.random.default_rng(seed)
    return Identity(
        name,
        coefficients=(generator.standard_normal((2, 5), dtype=np.float32),),
        embeddings=(generator.standard_normal((2, width), dtype=np.float32),),
        basis_hash="basis",
        family=FAMILY,
        table_hash=table_hash,
        provenance={"preset": "clean"},
    )


def _save(text: str, path: Path, table: NDArray[Any] | None = None, places: NDArray[Any] | None = None) -> None:
    model = parser.parse_model(text)
    if table is not None and places is not None:
        reference = numpy_helper.from_array(table, "token_table")
        reference.ClearField("raw_data")
        reference.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "token_table.bin"), ("offset", "0"), ("length", str(table.nbytes))):
            entry = reference.external_data.add()
            entry.key, entry.value = key, value
        model.graph.initializer.extend([reference, numpy_helper.from_array(places, "places")])
    path.write_bytes(model.SerializeToString())


def _graphs(path: Path) -> dict[str, GraphInfo]:
    graphs: dict[str, GraphInfo] = {}
    for file in sorted(path.glob("*.onnx")):
        graph = onnx.ModelProto.FromString(file.read_bytes()).graph
        data = ("token_table.bin",) if file.stem == "text_encoder" else ()
        graphs[file.stem] = GraphInfo(file.name, data, _tensors(graph.input), _tensors(graph.output))
    return graphs


def _tensors(values: Any) -> dict[str, TensorInfo]:
    names = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.INT64: "int64"}
    tensors: dict[str, TensorInfo] = {}
    for value in values:
        kind = value.type.tensor_type
        shape = tuple(dim.dim_param or int(dim.dim_value) for dim in kind.shape.dim)
        tensors[str(value.name)] = TensorInfo(names[kind.elem_type], shape)
    return tensors
