"""GGUF files of a DiT and of UMT5, written and unpacked by the `gguf` package, and what happens with damaged ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import layouts
import pytest
import torch
from ggufs import kind_of, save_gguf
from spieces import CORPUS, train
from torch import Tensor

import lolrt
from lolrt.checkpoint import find_files, read_component
from lolrt.checkpoint.ggml import BLOCKS
from lolrt.checkpoint.gguf_file import read_gguf
from lolrt.cli import main

DIT = layouts.dit_tensors()
KINDS = ["F32", "F16", "BF16", *BLOCKS]


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dit_of_every_kind_has_the_values_of_the_gguf_package(kind, tmp_path):
    held = save_gguf(tmp_path / "wan.gguf", DIT, kind)
    dit = lolrt.load_dit(tmp_path / "wan.gguf", torch.float32)
    assert dit.config == layouts.DIT and same(dit.state_dict(), held)
    rounded = lolrt.load_dit(tmp_path, torch.bfloat16).state_dict()
    assert same(rounded, {name: tensor.bfloat16() for name, tensor in held.items()})


STEPS = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 127, "Q5_0": 1 / 15, "Q5_1": 2 / 31, "Q4_0": 1 / 7, "Q4_1": 2 / 15}


@pytest.mark.parametrize("kind", STEPS)
def test_what_is_read_is_the_float_model_within_the_formats_step(kind, tmp_path):
    """The step is relative to the largest value of a block, or to each value if it has its own exponent."""
    save_gguf(tmp_path / "wan.gguf", DIT, kind)
    for name, tensor in lolrt.load_dit(tmp_path / "wan.gguf", torch.float32).state_dict().items():
        bound = DIT[name].abs()
        if kind_of(name, tuple(tensor.shape), kind) in BLOCKS:
            bound = bound.view(len(bound), -1, 32).amax(2, keepdim=True).expand(-1, -1, 32).reshape(bound.shape)
        assert ((tensor - DIT[name]).abs() <= STEPS[kind] * bound + 1e-7).all(), name


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("architecture", ["wan", "pig", "cow", None])
def test_files_of_other_tools(architecture, prefix, tmp_path):
    held = save_gguf(tmp_path / "x.bin", {prefix + name: tensor for name, tensor in DIT.items()}, "Q4_K", architecture)
    dit = lolrt.load_dit(tmp_path / "x.bin", torch.float32)
    assert same({prefix + name: tensor for name, tensor in dit.state_dict().items()}, held)


@pytest.mark.parametrize("names", ["Wan's", "diffusers'"])
def test_a_dit_in_the_sizes_of_ggml(names, tmp_path):
    tensors = DIT if names == "Wan's" else layouts.as_diffusers("dit", DIT)
    held = save_gguf(tmp_path / "x.gguf", {f"model.diffusion_model.{name}": x for name, x in tensors.items()}, "Q8_0", None, by_ggml=True)
    held = {name.removeprefix("model.diffusion_model."): tensor for name, tensor in held.items()}
    dit = lolrt.load_dit(tmp_path, torch.float32)
    assert dit.config == layouts.DIT and same(dit.state_dict(), held if names == "Wan's" else layouts.as_wan("dit", held))


def test_a_vae_in_the_sizes_of_ggml(tmp_path):
    held = save_gguf(tmp_path / "vae.gguf", layouts.vae_tensors(), "F16", None, by_ggml=True)
    vae = lolrt.load_vae(tmp_path, dtype=torch.float32)
    assert vae.config == layouts.VAE and same(vae.state_dict(), held)


def test_tensors_in_rows_of_another_length_have_their_shape(tmp_path):
    """Rows of 48 values, which is no multiple of a block of 256; rows are also requested from the middle of a block."""
    name = "text_embedding.0.weight"
    held = save_gguf(tmp_path / "x.gguf", DIT, "Q6_K", original=(name,))
    weight = read_gguf(tmp_path / "x.gguf").tensors[name]
    assert weight.shape == (256, 48) and weight.form == "Q6_K of ggml"
    assert torch.equal(weight.unpack(torch.float32), held[name])
    for first, last in ((0, 1), (3, 4), (7, 100), (255, 256), (5, 5)):
        assert torch.equal(weight.rows(first, last), held[name][first:last])
    assert same(lolrt.load_dit(tmp_path, torch.float32).state_dict(), held)


def test_convert_and_inspect(tmp_path, capsys):
    held = save_gguf(tmp_path / "m" / "x.gguf", DIT, "Q4_K")
    assert main(["inspect", str(tmp_path / "m" / "x.gguf")]) == 0
    told = capsys.readouterr().out
    assert "18 in Q4_K of ggml" in told and "2 in Q8_0 of ggml" in told and "complete   every tensor" in told
    assert main(["convert", str(tmp_path / "m" / "x.gguf"), str(tmp_path / "out"), "--dtype", "float32"]) == 0
    assert same(lolrt.load_dit(tmp_path / "out", torch.float32).state_dict(), held)


def test_adapters_are_merged_into_it_and_rounded_once(tmp_path):
    held = save_gguf(tmp_path / "x.gguf", DIT, "Q4_0")
    torch.save(layouts.lora_tensors(4), tmp_path / "lora.pt")
    merged = lolrt.load_dit(tmp_path, torch.bfloat16).state_dict()
    tensors = layouts.lora_tensors(4)
    for layer in ("blocks.0.self_attn.q", "blocks.1.ffn.2"):
        a, b = (tensors[f"base_model.model.{layer}.lora_{side}.weight"].double() for side in "AB")
        exact = held[f"{layer}.weight"].double() + b @ a
        half_a_step = 2.0 ** (torch.frexp(exact)[1] - 9).double()
        assert ((merged[f"{layer}.weight"].double() - exact).abs() <= half_a_step + 1e-6).all()


def t5_names(name: str) -> str:
    """The names that llama.cpp gives to a T5 encoder's tensors, from Wan's names; written down from its converter."""
    parts = {
        "norm1": "attn_norm", "norm2": "ffn_norm", "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v", "attn.o": "attn_o",
        "ffn.gate.0": "ffn_gate", "ffn.fc1": "ffn_up", "ffn.fc2": "ffn_down", "pos_embedding.embedding": "attn_rel_b",
    }  # fmt: skip
    if not name.startswith("blocks."):
        return {"token_embedding.weight": "token_embd.weight", "norm.weight": "enc.output_norm.weight"}[name]
    _, number, rest = name.split(".", 2)
    return f"enc.blk.{number}.{parts[rest.removesuffix('.weight')]}.weight"


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q5_K"])
def test_a_text_encoder_has_the_values_of_the_gguf_package(kind, tmp_path):
    tensors = layouts.text_encoder_tensors()
    held = save_gguf(tmp_path / "umt5.gguf", {t5_names(name): tensor for name, tensor in tensors.items()}, kind, "t5encoder")
    component = read_component(tmp_path / "umt5.gguf", "text_encoder")
    unpacked = {name: found if isinstance(found, Tensor) else found.unpack(torch.float32) for name, found in component.tensors.items()}
    assert same({name: tensor.float() for name, tensor in unpacked.items()}, {name: held[t5_names(name)] for name in tensors})


Write = Callable[[Path], object]


def header(*parts: bytes, tensors: int = 0, fields: int = 0, version: int = 3, data: bytes = b"") -> Write:
    """A file that has these parts after its counts."""
    return lambda path: path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + b"".join(parts) + data)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def field(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: bytes, sizes: tuple[int, ...], kind: int, offset: int = 0, count: int | None = None) -> bytes:
    dims = struct.pack(f"<I{len(sizes)}Q", len(sizes) if count is None else count, *sizes)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def sound(change: Callable[[bytes], bytes]) -> Write:
    def write(path: Path) -> None:
        save_gguf(path, DIT, "Q4_K")
        path.write_bytes(change(path.read_bytes()))

    return write


LONG, SHAPE = 1 << 62, b"comfy.gguf.orig_shape.a"
MALFORMED: dict[str, tuple[Write, str]] = {
    "its magic alone": (lambda path: path.write_bytes(b"GGUF"), "ends in its header"),
    "cut in its counts": (lambda path: path.write_bytes(b"GGUF\3\0\0\0\1"), "ends in its header"),
    "version 1": (header(version=1), "of version 1; expected 2 or 3"),
    "the other byte order": (header(version=3 << 24), "of the other byte order"),
    "a count of fields beyond all": (header(fields=2**64 - 1), "ends in its header"),
    "a count of tensors beyond all": (header(tensors=2**63), "ends in its header"),
    "a key without end": (header(struct.pack("<Q", LONG), b"x", fields=1), "ends in its header"),
    "a text without end": (header(field(b"a", 8, struct.pack("<Q", LONG)), fields=1), "ends in its header"),
    "an array without end": (header(field(b"a", 9, struct.pack("<IQ", 6, LONG)), fields=1), "ends in its header"),
    "an array of texts without end": (header(field(b"a", 9, struct.pack("<IQ", 8, LONG)), fields=1), "ends in its header"),
    "an array of arrays": (header(field(b"a", 9, struct.pack("<IQ", 9, 1)), fields=1), "a field of it has type 9"),
    "an unknown type of field": (header(field(b"a", 13, b""), fields=1), "a field of it has type 13"),
    "a key that is no text": (header(field(b"\xff", 0, b"a"), fields=1), "no UTF-8"),
    "a field twice": (header(2 * field(b"a", 0, b"a"), fields=2), "field 'a' comes twice"),
    "no alignment": (header(field(b"general.alignment", 4, bytes(4)), fields=1), "its alignment is 0"),
    "an alignment of text": (header(field(b"general.alignment", 8, text(b"32")), fields=1), "its alignment is 32"),
    "a part of a split file": (header(field(b"split.count", 2, b"\3\0"), fields=1), "is one of 3 parts of a file"),
    "a tensor twice": (header(2 * tensor(b"a", (1,), 0), tensors=2), "tensor 'a' comes twice"),
    "a tensor under two names": (
        header(tensor(b"token_embd.weight", (1,), 0), tensor(b"shared.weight", (1,), 0, 32), tensors=2, data=bytes(99)),
        "tensor 'shared.weight' comes twice, as 'shared.weight' too",
    ),
    "a hundred dimensions": (header(tensor(b"a", (), 0, count=100), tensors=1), "has 100 dimensions"),
    "a huge shape": (header(tensor(b"a", (2**40, 2**40), 0), tensors=1), "has shape"),
    "a type that is none": (header(tensor(b"a", (32,), 4), tensors=1), "is of type 4, which ggml does not have"),
    "a type that is not read": (header(tensor(b"a\x1b[2J", (256,), 23), tensors=1), r"holds 'a\\x1b\[2J' in IQ4_XS of ggml, which is not"),
    "rows that no block divides": (header(tensor(b"a", (100, 4), 12), tensors=1), r"shape \[4, 100\], and Q4_K goes by blocks of 256"),
    "a number in blocks": (header(tensor(b"a", (), 8), tensors=1), r"shape \[\], and Q8_0 goes by blocks of 32"),
    "a tensor behind the end": (header(tensor(b"a", (32,), 0, 1 << 20), tensors=1, data=bytes(256)), "ends behind the end of the file"),
    "an offset beyond all": (header(tensor(b"a", (32,), 0, 2**64 - 64), tensors=1, data=bytes(256)), "ends behind the end of the file"),
    "tensors that overlap": (
        header(tensor(b"a", (32,), 0), tensor(b"b", (32,), 0, 64), tensors=2, data=bytes(512)), "tensor 'b' overlaps the one before it",
    ),
    "a shape of another size": (
        header(field(SHAPE, 9, struct.pack("<IQii", 5, 2, 3, 5)), tensor(b"a", (16,), 0), fields=1, tensors=1, data=bytes(99)),
        r"shape \[16\], and was to have \[3 5\]",
    ),
    "a shape of text": (
        header(field(SHAPE, 8, text(b"16")), tensor(b"a", (16,), 0), fields=1, tensors=1, data=bytes(99)),
        r"shape \[16\], and was to have 16",
    ),
    "another model's": (
        lambda path: save_gguf(path, {"double_blocks.0.img_attn.qkv.weight": torch.zeros(32, 32)}, "F16", "flux"),
        "no part of a model that is known here, under names such as double_blocks.* of architecture 'flux'",
    ),
    "cut in its tensors": (sound(lambda whole: whole[:-1000]), "ends behind the end of the file"),
    "cut in its header": (sound(lambda whole: whole[:700]), "ends in its header"),
    "with a tensor too few": (
        lambda path: save_gguf(path, {name: x for name, x in DIT.items() if name != "head.head.bias"}, "Q8_0"), "missing: head.head.bias",
    ),
    "with values that are not finite": (
        lambda path: save_gguf(path, {**DIT, "head.head.bias": torch.full((64,), float("nan"))}, "F16"), "not finite, in head.head.bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_told_in_one_line(name, tmp_path, capsys):
    write, hint = MALFORMED[name]
    write(tmp_path / "x.gguf")
    with pytest.raises(lolrt.CheckpointError, match=hint) as error:
        lolrt.load_dit(tmp_path / "x.gguf")
    assert str(error.value).isprintable()
    assert main(["generate", "a", "-o", str(tmp_path / "v.mp4"), "--model", str(tmp_path / "x.gguf")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lolrt: ")


def test_a_header_without_end_takes_no_time(tmp_path):
    """Endlessly many texts of length 0, in a file of a terabyte."""
    with open(tmp_path / "x.gguf", "wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field(b"a", 9, struct.pack("<IQ", 8, LONG)))
        file.truncate(1 << 40)
    with pytest.raises(lolrt.CheckpointError, match="header has more than 1,000,000 texts"):
        find_files(tmp_path / "x.gguf")


PROMPTS = ["a red car", "  the   boat:  by the sea ", "日本の海 ﬁsh №", "unheard-of 🙂 words", "", "▁ the", "noon\tby\nsea"]


@pytest.fixture(scope="module", params=[True, False], ids=["byte fallback", "unknown pieces"])
def pieces(request, tmp_path_factory):
    """The pieces of a unigram model that SentencePiece has trained, read by its own schema."""
    import sentencepiece

    model = train(tmp_path_factory.mktemp("spiece"), byte_fallback=request.param, user_defined_symbols=["<extra>"])
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def tokenizer_fields(pieces) -> dict[str, object]:
    """The fields as llama.cpp's converter writes them, with the vocabulary padded to the number of rows of the table."""
    from gguf import GGUFValueType
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(pieces.serialized_model_proto())
    padding = range(len(proto.pieces), layouts.TEXT_ENCODER.vocab_size)
    return {
        "tokenizer.ggml.model": ("t5", GGUFValueType.STRING),
        "tokenizer.ggml.tokens": [*(piece.piece for piece in proto.pieces), *(f"[PAD{i}]" for i in padding)],
        "tokenizer.ggml.scores": [*(piece.score for piece in proto.pieces), *(-10000.0 for _ in padding)],
        "tokenizer.ggml.token_type": [*(piece.type for piece in proto.pieces), *(5 for _ in padding)],
        "tokenizer.ggml.precompiled_charsmap": [byte for byte in proto.normalizer_spec.precompiled_charsmap],
        "tokenizer.ggml.add_space_prefix": (proto.normalizer_spec.add_dummy_prefix, GGUFValueType.BOOL),
        "tokenizer.ggml.remove_extra_whitespaces": (proto.normalizer_spec.remove_extra_whitespaces, GGUFValueType.BOOL),
        "tokenizer.ggml.eos_token_id": (1, GGUFValueType.UINT32),
    }


WRONG = {
    "another kind": ("model", ("llama", 8), "a tokenizer of kind 'llama'; expected a unigram model"),
    "no texts": ("tokens", [1, 2, 3], "expected a unigram model"),
    "scores of whole numbers": ("scores", [1, 2, 3], "are no numbers"),
    "scores too few": ("scores", [0.5, 0.25, 0.5], "has 300 pieces, 3 scores and 300 types"),
    "scores that are not finite": ("scores", [float("nan")] * 300, "has scores that are not finite"),
    "no end": ("eos_token_id", (300, 4), "none that ends a text"),
    "nothing for what it does not know": ("token_type", [1] * 300, "has no piece for what it does not know"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_tokenizer_is_told(name, tmp_path):
    from gguf import GGUFValueType

    key, value, hint = WRONG[name]
    fields = {
        "model": ("t5", 8), "tokens": [f"p{i}" for i in range(300)], "scores": [-0.5] * 300, "token_type": [3, 3, 2] + [1] * 297,
        "eos_token_id": (1, 4), key: value,
    }  # fmt: skip
    typed = {f"tokenizer.ggml.{k}": v if isinstance(v, list) else (v[0], GGUFValueType(v[1])) for k, v in fields.items()}
    named = {t5_names(name): tensor for name, tensor in layouts.text_encoder_tensors().items()}
    save_gguf(tmp_path / "umt5.gguf", named, "F16", "t5encoder", typed)
    with pytest.raises(lolrt.CheckpointError, match=hint) as error:
        read_component(tmp_path / "umt5.gguf", "text_encoder").tokenizer()
    assert "umt5.gguf" in str(error.value)


@pytest.mark.skipif(not find_spec("tokenizers"), reason="no tokenizers")
def test_the_tokenizer_inside_gives_the_tokens_of_sentencepiece(pieces, tmp_path):
    import tokenizers

    named = {t5_names(name): tensor for name, tensor in layouts.text_encoder_tensors().items()}
    save_gguf(tmp_path / "umt5.gguf", named, "Q8_0", "t5encoder", tokenizer_fields(pieces))
    component = read_component(tmp_path / "umt5.gguf", "text_encoder")
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(component.tokenizer()))
    for prompt in PROMPTS + CORPUS[:4]:
        assert tokenizer.encode(prompt).ids == [*pieces.encode(prompt), 1], prompt


@pytest.mark.whole
@pytest.mark.skipif(not all(map(find_spec, ("transformers", "ftfy"))), reason="no transformers, or no ftfy")
def test_the_path_alone_is_an_encoder(pieces, tmp_path, monkeypatch):
    """So is a converted folder, which has the tokenizer too."""
    monkeypatch.setenv("LOLRT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model" / "umt5.gguf"
    save_gguf(path, {t5_names(name): tensor for name, tensor in layouts.text_encoder_tensors().items()}, "Q8_0", "t5encoder",
              tokenizer_fields(pieces))  # fmt: skip
    rows = lolrt.load_text(path)("a red car by the sea")
    assert rows.shape == (len(pieces.encode("a red car by the sea")) + 1, layouts.TEXT_ENCODER.dim) and rows.isfinite().all()
    assert main(["convert", str(path), str(tmp_path / "converted")]) == 0
    assert torch.equal(lolrt.load_text(tmp_path / "converted")("a red car by the sea"), rows)
