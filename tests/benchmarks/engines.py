"""The engines that peers.py compares, one class each, all with one face, and the files that they read.

An engine reads a prompt's ids and decodes greedily; :meth:`run` returns the new ids and, for each, the
second at which it was there, from the call on. Each gets what it does best with: no text, and no sampler
where greedy needs none. Only minicore is imported for sure; the others raise ImportError.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Run = tuple[list[int], list[float]]  # new ids, seconds
PROCESSOR_TIME = "PEERS_PROCESSOR_TIME"


def now() -> float:
    """Return seconds: the clock's, or the processor's that this process has used, as the environment asks."""
    return time.process_time() if os.environ.get(PROCESSOR_TIME) else time.perf_counter()


def stamped(tokens: Iterable[int], n_new: int, began: float) -> Run:
    """Take n_new tokens and note when each came."""
    ids, seconds = [], []
    for token in tokens:
        ids.append(int(token))
        seconds.append(now() - began)
        if len(ids) == n_new:
            break
    return ids, seconds


class Minicore:
    """This project, through the public stream; without a tokenizer it yields as each token comes.

    Its decoder is made after the first token, which is prefill's; the time counts with prefill here.
    """

    def __init__(self, files: dict[str, str], n_threads: int, n_ctx: int, dtype: str) -> None:
        import minicore

        self.model = dataclasses.replace(minicore.load(files["Q4_1"], dtype=dtype), tokenizer=None)
        self.stats: dict[str, Any] = {}

    def run(self, ids: list[int], n_new: int, **settings: Any) -> Run:
        began = now()
        stream = self.model.stream(ids, max_new_tokens=n_new, ignore_eos=True, **settings)
        new, seconds = stamped((stream.token_ids[-1] for _ in stream), n_new, began)
        self.stats = stream.result.stats
        first = min(
            [seconds[0] + self.stats["compile_s"], *seconds[1:2]]
        )  # some of it may lie before that token
        return new, [first, *seconds[1:]]

    def about(self) -> dict[str, Any]:
        """Return what is known of the last run besides its times."""
        kv_bytes = self.model.new_cache(1).nbytes
        kv_bytes *= self.stats["prompt_tokens"] + self.stats["new_tokens"]
        known = ("bytes_per_token", "weights_bytes", "core_fraction", "compile_s")
        return {name: self.stats[name] for name in known} | {"kv_bytes": kv_bytes}


class Transformers:
    """``generate`` of Transformers, with a streamer that looks at the clock."""

    def __init__(self, files: dict[str, str], n_threads: int, n_ctx: int, dtype: str) -> None:
        import torch
        import transformers

        torch.set_num_threads(n_threads)
        self.torch = torch
        kind = getattr(torch, dtype)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(files["hf"], dtype=kind).eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0

    def run(self, ids: list[int], n_new: int) -> Run:
        clock = Clock()
        prompt = self.torch.tensor([ids])
        out = self.model.generate(
            prompt,
            attention_mask=self.torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=n_new,
            streamer=clock,
        )
        return out[0, len(ids) :].tolist(), clock.seconds

    def about(self) -> dict[str, Any]:
        return {"bytes_per_token": sum(p.numel() * p.element_size() for p in self.model.parameters())}


class Clock:
    """A streamer: notes when each token comes; the first call hands over the prompt."""

    def __init__(self) -> None:
        self.began, self.seconds = now(), []  # type: float, list[float]
        self.prompt_seen = False

    def put(self, tokens: Any) -> None:
        if self.prompt_seen:
            self.seconds.append(now() - self.began)
        self.prompt_seen = True

    def end(self) -> None:
        """Nothing is held back."""


class LlamaCpp:
    """llama-cpp-python's ``eval``, and the largest logit: its samplers would sort what greedy need not."""

    def __init__(self, files: dict[str, str], n_threads: int, n_ctx: int, kind: str) -> None:
        import llama_cpp
        import numpy as np

        self.np, self.path = np, files[kind]
        self.llm = llama_cpp.Llama(
            files[kind],
            n_ctx=n_ctx,
            n_batch=512,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            verbose=False,
        )

    def run(self, ids: list[int], n_new: int) -> Run:
        began = now()
        self.llm.reset()
        return stamped(self.tokens(ids), n_new, began)

    def tokens(self, ids: list[int]) -> Iterable[int]:
        shape = (self.llm.n_vocab(),)
        while True:
            self.llm.eval(ids)
            logits = self.np.ctypeslib.as_array(self.llm._ctx.get_logits_ith(-1), shape=shape)
            ids = [int(logits.argmax())]
            yield ids[0]

    def about(self) -> dict[str, Any]:
        import gguf

        return {"bytes_per_token": sum(int(t.n_bytes) for t in gguf.GGUFReader(self.path).tensors)}


class CTranslate2:
    """``generate_batch`` of CTranslate2, with a callback that looks at the clock."""

    def __init__(self, files: dict[str, str], n_threads: int, n_ctx: int, kind: str) -> None:
        import ctranslate2

        folder = files[f"ct2-{kind}"]
        self.weights = Path(folder) / "model.bin"
        self.generator = ctranslate2.Generator(folder, compute_type=kind, intra_threads=n_threads)
        self.words = json.loads((Path(folder) / "vocabulary.json").read_text(encoding="utf-8"))

    def run(self, ids: list[int], n_new: int) -> Run:
        new: list[int] = []
        seconds: list[float] = []
        began = now()

        def note(step: Any) -> bool:
            new.append(int(step.token_id))
            seconds.append(now() - began)
            return False

        self.generator.generate_batch(
            [[self.words[i] for i in ids]],
            max_length=n_new,
            min_length=n_new,
            include_prompt_in_result=False,
            callback=note,
        )
        return new, seconds

    def about(self) -> dict[str, Any]:
        return {"bytes_per_token": self.weights.stat().st_size}


ENGINES = {
    "minicore": Minicore,
    "transformers": Transformers,
    "llama_cpp": LlamaCpp,
    "ctranslate2": CTranslate2,
}


# --- their files, all of the same weights ---


def prepare(model: str, folder: Path, wanted: list[str]) -> dict[str, Any]:
    """Make what is missing of the files wanted and return their paths, and why some could not be made.

    ``Q4_1`` is the GGUF file given; ``F32``, ``F16`` and ``Q8_0`` are GGUF files of the numbers it means,
    ``hf`` a Hugging Face directory of these, ``ct2-float32`` and ``ct2-int8`` that directory converted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files, missing = {"Q4_1": model}, {}
    for name in wanted:
        if name in files:
            continue
        path = folder / (f"{name}.gguf" if name in ("F32", "F16", "Q8_0") else name)
        try:
            if not path.exists():
                part = path.with_name(f"part-{path.name}")
                if name == "hf":
                    write_directory(model, part)
                elif name.startswith("ct2-"):
                    convert(folder / "hf", part, name.removeprefix("ct2-"))
                else:
                    write_gguf(model, part, name)
                part.rename(path)
            files[name] = str(path)
        except ImportError as error:
            missing[name] = f"{error.name} is not installed"
    return {"files": files, "missing": missing}


def write_gguf(source: str, path: Path, kind: str) -> None:
    """Write a GGUF file again with its matrices in another type."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    file_types = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[file_types[kind]])
    for tensor in reader.tensors:
        wide = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if wide.ndim == 1 or kind == "F32":
            writer.add_tensor(tensor.name, wide)
        elif kind == "F16":
            writer.add_tensor(tensor.name, wide.astype(np.float16))
        else:
            quantization = gguf.GGMLQuantizationType[kind]
            packed = gguf.quants.quantize(wide, quantization)
            writer.add_tensor(tensor.name, packed, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_directory(source: str, folder: Path) -> None:
    """Let Transformers read the GGUF file and write it as it likes it."""
    import transformers

    where, name = str(Path(source).parent), Path(source).name
    model = transformers.AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype="float32")
    plain = type(model)(transformers.AutoConfig.from_pretrained(where, gguf_file=name))
    plain.load_state_dict(model.state_dict())  # one read from GGUF counts as quantised and cannot be saved
    plain.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(folder)


def convert(source: Path, folder: Path, kind: str) -> None:
    """Let CTranslate2 convert the Hugging Face directory."""
    import ctranslate2

    converter = ctranslate2.converters.TransformersConverter(str(source))
    converter.convert(str(folder), quantization=kind, force=True)
