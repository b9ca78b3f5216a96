"""Reading, splitting, installed text, tokenising."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers import decoders as token_decoders
from transformers import PreTrainedTokenizerFast

from bakeoff.errors import DataError, UsageError
from bakeoff.text import Example, Message, documents, encode, fingerprint, installed, pieces, read, split
from bakeoff.text.tokenise import IGNORED, Item

torch.set_num_threads(1)

CHAT = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
# Reasoning models' templates write the last turn otherwise than the earlier ones.
LAST_DIFFERS = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n"
    "{% if loop.last and m['role'] == 'assistant' %}<think></think>{% endif %}{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
NO_QUESTION = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "A question: what is the capital of France? Answer: Paris, of course, is the capital of France.",
    "user assistant system the answer is the question of the day",
] * 20


def tokenizer(*, bos: bool = False, eos: bool = True, template: str | None = CHAT) -> PreTrainedTokenizerFast:
    """A byte-level BPE with merges, so that tokens depend on what stands beside them."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = token_decoders.ByteLevel()
    core.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=330,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|begin|>", "<|eos|>", "<|turn|>", "<|end|>"],
            show_progress=False,
        ),
    )
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", core.token_to_id("<|begin|>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|begin|>" if bos else None,
        eos_token="<|eos|>" if eos else None,
        chat_template=template,
    )


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def jsonl(path: Path, *rows: Any) -> Path:
    return write(path, *(json.dumps(row) for row in rows))


def texts(examples: list[Example]) -> list[str]:
    return [example.text for example in examples]


def learnt(item: Item, with_tokenizer: PreTrainedTokenizerFast) -> str:
    return str(with_tokenizer.decode(item.labels[item.labels != IGNORED]))


# reading: formats


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    [example] = read(write(tmp_path / "a.txt", "one", "", "two"))
    assert example == Example("text", f"{tmp_path / 'a.txt'}:1", text="one\n\ntwo")


def test_end_markers_divide_a_text_file_and_lines_are_right(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "", "first", "<|endoftext|>", "", "second", "more", "<|endoftext|>", "", "")
    assert [(example.text, example.where) for example in read(path)] == [
        ("first", f"{path}:2"),
        ("second\nmore", f"{path}:5"),
    ]


def test_jsonl_lines_are_exact_and_other_separators_do_not_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"text": "a\u2028b", "n": 3}\r\n\n{"text": "c"}'.encode())
    assert [(example.text, example.where) for example in read(path)] == [("a\u2028b", f"{path}:1"), ("c", f"{path}:3")]


@pytest.mark.parametrize("content", ['[{"text": "a"}, {"text": "b"}]', '{"data": [{"text": "a"}, {"text": "b"}]}'])
def test_json(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "a.json", content)
    assert [(example.text, example.where) for example in read(path)] == [
        ("a", f"{path}, row 1"),
        ("b", f"{path}, row 2"),
    ]


def test_json_that_is_one_row_a_line(tmp_path: Path) -> None:
    assert texts(read(jsonl(tmp_path / "a.json", {"text": "a"}, {"text": "b"}))) == ["a", "b"]


def test_csv_rows_are_named_by_the_line_they_start_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([["label", "text"], ["0", 'two\nlines, "quoted"'], ["1", "x"], ["1", "y" * 200_000]])
    limit = csv.field_size_limit()
    assert [(example.text[:30], example.where) for example in read(path)] == [
        ('two\nlines, "quoted"', f"{path}:2"),
        ("x", f"{path}:4"),
        ("y" * 30, f"{path}:5"),
    ]
    assert csv.field_size_limit() == limit


def test_tsv_quotes_are_characters(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "label\ttext", '0\t"so" he said', '1\t"open')
    assert texts(read(path)) == ['"so" he said', '"open']


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "b"}\n'))
    assert read(path)[1] == Example("text", f"{path}:2", text="b")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="no complete gzip"):
        read(path)


def test_parquet_arrow_and_saved_datasets(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset, DatasetDict

    table = pyarrow.table({"prompt": ["p", "q"], "completion": ["c", "d"], "n": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for name, opens in (("file.arrow", pyarrow.ipc.new_file), ("stream.arrow", pyarrow.ipc.new_stream)):
        with opens(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    for name in ("a.parquet", "file.arrow", "stream.arrow"):
        path = tmp_path / name
        assert read(path)[1] == Example("completion", f"{path}, row 2", prompt="q", completion="d")
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(DataError, match="no complete"):
            read(path)
    data = Dataset.from_dict({"messages": [[{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]]})
    data.save_to_disk(str(tmp_path / "one"))
    assert read(tmp_path / "one")[0].messages == (Message("user", "u"), Message("assistant", "a"))
    DatasetDict(train=data, test=data).save_to_disk(str(tmp_path / "two"))
    assert read(tmp_path / "two", split="test")[0].kind == "messages"
    with pytest.raises(DataError, match="no split 'valid'; choose one of: train, test"):
        read(tmp_path / "two", split="valid")
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match=r"no complete folder of datasets\.save_to_disk"):
        read(tmp_path / "one")


def test_folders_are_read_by_name_without_what_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "b.txt", "b")
    jsonl(tmp_path / "a.jsonl", {"text": "a"})
    write(tmp_path / "sub" / "c.txt", "c")
    write(tmp_path / "README.md", "no data")
    write(tmp_path / ".hidden.txt", "no data")
    assert texts(read(tmp_path)) == ["a", "b", "c"]


# reading: shapes


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "p", "completion": "c"}, "p", "c"),
        ({"prompt": "p", "response": "c"}, "p", "c"),
        ({"prompt": "", "completion": "c"}, "", "c"),
        ({"question": "p", "answer": "c"}, "p\n", "c"),
        ({"problem": "p", "solution": "c"}, "p\n", "c"),
        ({"instruction": "p", "output": "c"}, "p\n", "c"),
        ({"instruction": "p ", "input": "", "output": "c", "text": "all"}, "p ", "c"),
        ({"instruction": "p", "input": "i", "output": "c"}, "p\n\ni\n", "c"),
    ],
)
def test_spellings_of_completions(tmp_path: Path, row: dict[str, str], prompt: str, completion: str) -> None:
    [example] = read(jsonl(tmp_path / "a.jsonl", row))
    assert (example.kind, example.prompt, example.completion) == ("completion", prompt, completion)


def test_conversations(tmp_path: Path) -> None:
    turns = (Message("system", ""), Message("user", "u"), Message("assistant", "a"))
    role = [{"role": turn.role, "content": turn.content} for turn in turns]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = [{"from": names[turn.role], "value": turn.content} for turn in turns]
    for row in ({"messages": role}, {"conversations": sharegpt}, {"conversations": role}):
        assert read(jsonl(tmp_path / "a.jsonl", row))[0].messages == turns
    [example] = read(jsonl(tmp_path / "a.jsonl", {"prompt": role[:2], "completion": role[2:]}))
    assert (example.prompt, example.completion) == (turns[:2], turns[2:])


def test_preferences(tmp_path: Path) -> None:
    user, good, bad = ({"role": r, "content": c} for r, c in (("user", "p"), ("assistant", "y"), ("assistant", "n")))
    path = tmp_path / "a.jsonl"
    [example] = read(jsonl(path, {"prompt": "p", "chosen": "y", "rejected": "n"}))
    assert (example.kind, example.prompt, example.chosen, example.rejected) == ("preference", "p", "y", "n")
    [example] = read(jsonl(path, {"chosen": "y", "rejected": "n"}))
    assert example.prompt == ""
    [example] = read(jsonl(path, {"prompt": [user], "chosen": [good], "rejected": [bad]}))
    assert (example.prompt, example.rejected) == ((Message("user", "p"),), (Message("assistant", "n"),))
    [example] = read(jsonl(path, {"prompt": "p", "chosen": [user, good], "rejected": [user, bad]}))
    assert (example.prompt, example.chosen) == ("", (Message("user", "p"), Message("assistant", "y")))


def test_kind_chooses_among_the_shapes_of_a_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "t", "prompt": "p", "completion": "c", "chosen": "y", "rejected": "n"})
    assert read(path)[0].kind == "preference"
    assert read(path, kind="completion")[0].completion == "c"
    assert texts(read(path, kind="text")) == ["t"]
    with pytest.raises(DataError, match="needs one of: messages; conversations"):
        read(path, kind="messages")


# reading: what is wrong


@pytest.mark.parametrize(
    ("rows", "line", "says"),
    [
        ([{"text": "a"}, {"txt": "b"}], 2, "text missing, but the rows before it have text"),
        ([{"text": "a"}, {"text": None}], 2, "text missing"),
        ([{"text": "a"}, {"text": 5}], 2, "text must be a string, not a number"),
        ([{"text": "a"}, {"text": " \n"}], 2, "text is empty"),
        ([{"text": "a"}, {"prompt": "a", "completion": "b"}], 2, "all rows need one shape"),
        ([{"text": "a"}, {"text": "a", "prompt": "a", "completion": "b"}], 2, "the shape is prompt and completion"),
        ([{"text": "a"}, ["b"]], 2, "an object with named fields was expected, not a list"),
        ([{"prompt": "a"}], 1, "the row has prompt, but needs one of: .*prompt and completion"),
        ([{}], 1, "the row has nothing"),
        ([{"prompt": "a", "completion": ""}], 1, "completion is empty"),
        ([{"question": "", "answer": "b"}], 1, "question is empty"),
        ([{"instruction": "a", "input": 3, "output": "b"}], 1, "input must be a string"),
        ([{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}], 1, "prompt and completion must all"),
        ([{"chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]}], 1, "chosen and rejected must all be"),
        ([{"messages": "a"}], 1, "messages must be a list of messages, not a string"),
        ([{"messages": []}], 1, "messages must be a list of messages, not an empty list"),
        ([{"messages": ["a"]}], 1, "message 1 of messages must be an object"),
        ([{"messages": [{"role": "user", "content": "a"}]}], 1, "no turn of the assistant"),
        ([{"messages": [{"role": "user"}]}], 1, "content of message 1 of messages must be a string, not missing"),
        ([{"messages": [{"content": "a"}]}], 1, "role of message 1 of messages must be a string, not missing"),
        ([{"conversations": [{"from": "gpt", "value": ""}]}], 1, "value of message 1 of conversations is empty"),
        ([{"text": "\ud800"}], 1, "half of a surrogate pair"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, rows: list[Any], line: int, says: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", *rows)
    with pytest.raises(DataError, match=says) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', ":2: not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', ":2: not valid UTF-8"),
        ("a.txt", b"a\nb\xe9\n", ":2: not valid UTF-8"),
        ("a.json", b'[{"text": "a"},\n{"text"}]', ":2: not valid JSON"),
        ("a.json", b'"text"', "a list of objects .* was expected, not a string"),
        ("a.json", b'[{"text": "a"}, {"text": 1}]', ", row 2: text must be a string"),
        ("a.csv", b'text,n\n"a\nb",1\nc\n', ":4: 1 fields were found, 2 expected"),
        ("a.csv", b'text,n\na,1\n"b"x,2\n', ":3: not a valid row"),
        ("a.csv", b'text,n\na,1\n"b,2\n', ":3: not a valid row"),
        ("a.csv", b"text,n\n,2\n", ":2: text is empty"),
        ("a.tsv", b"text\tn\na\n", ":2: 1 fields were found"),
        ("a.csv", b"text,n\n", "holds no examples"),
        ("a.txt", b"", "holds no examples"),
        ("a.txt", b"\xef\xbb\xbf \n", "holds no examples"),
        ("a.jsonl", b"\n\n", "holds no examples"),
        ("a.json", b"[]", "holds no examples"),
        ("a.json", b"", "holds no examples"),
        ("a.jsonl.gz", b"plain", "no complete gzip"),
        ("a.parquet", b"plain", "no complete parquet"),
        ("a.arrow", b"", "no complete arrow"),
        ("a.md", b"text", "no suffix that can be read"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def test_what_does_not_exist_is_named_with_what_is_near(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "")
    with pytest.raises(DataError, match=r"trian\.jsonl does not exist; did you mean .*train\.jsonl\?"):
        read(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match="nor can its folder"):
        read(tmp_path / "none" / "deep" / "a")
    with pytest.raises(DataError, match="does not exist"):
        read("none/train.jsonl")
    with pytest.raises(DataError, match="does not exist"):
        fingerprint(tmp_path / "other")
    with pytest.raises(DataError, match="holds no file that can be read"):
        read((tmp_path / "empty").mkdir() or tmp_path / "empty")


@pytest.mark.parametrize(
    ("offline", "says"), [("1", "HF_HUB_OFFLINE forbids"), ("0", "the Hugging Face hub did not give")]
)
def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, offline: str, says: str) -> None:
    import datasets

    def refuse(name: str, configuration: str | None) -> None:
        assert (name, configuration) == ("owner/name", "main")
        raise ConnectionError("no route")

    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=says):
        read("owner/name:main")


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    made = datasets.DatasetDict(test=datasets.Dataset.from_dict({"text": ["a", "b"]}))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration: made)
    assert read("owner/name")[1] == Example("text", "owner/name, row 2", text="b")


def test_fingerprints_tell_contents_and_names_apart(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    write(folder / "a.txt", "a")
    write(folder / "sub" / "b.txt", "b")
    # sha256 of the bytes "a\n", from coreutils' sha256sum
    assert fingerprint(folder / "a.txt") == "87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7"
    prints = {fingerprint(folder)}
    (folder / "a.txt").rename(folder / "c.txt")
    prints.add(fingerprint(folder))
    write(folder / "c.txt", "c")
    prints.add(fingerprint(folder))
    assert len(prints) == 3
    assert fingerprint(folder) in prints


# splitting


def lines(number: int) -> list[Example]:
    return [Example("text", f"a:{index}", text=f"text {index}") for index in range(number)]


def test_split_has_the_shares_and_shares_no_text() -> None:
    examples = lines(100) + lines(50)
    parts = split(examples, {"train": 0.8, "valid": 0.1, "test": 0.1}, seed=0)
    distinct = {name: set(texts(part)) for name, part in parts.items()}
    assert {name: len(part) for name, part in distinct.items()} == {"train": 80, "valid": 10, "test": 10}
    assert len(set.union(*distinct.values())) == 100
    assert sum(map(len, parts.values())) == 150
    assert [example for example in examples if example in parts["test"]] == parts["test"]


def test_split_depends_on_contents_and_seed_alone() -> None:
    shares = {"a": 0.5, "b": 0.5}
    there = split(lines(40), shares, seed=1)
    back = split([Example("text", "elsewhere", text=example.text) for example in reversed(lines(40))], shares, seed=1)
    assert set(texts(there["a"])) == set(texts(back["a"]))
    assert texts(there["a"]) != texts(split(lines(40), shares, seed=2)["a"])
    # as the first release divided them: no later one moves examples between a user's parts
    assert texts(split(lines(8), shares, seed=0)["a"]) == ["text 2", "text 4", "text 5", "text 6"]


def test_every_part_gets_an_example_or_an_error_says_how_many_are_needed() -> None:
    parts = split(lines(3), {"a": 0.98, "b": 0.01, "c": 0.01}, seed=0)
    assert [len(part) for part in parts.values()] == [1, 1, 1]
    with pytest.raises(DataError, match="need at least 3 different examples, but there are 2"):
        split(lines(2) + lines(2), {"a": 0.98, "b": 0.01, "c": 0.01}, seed=0)


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 1.0, "b": 0.0}])
def test_shares_that_are_none(shares: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="sum to 1"):
        split(lines(9), shares, seed=0)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab \n", min_size=1, max_size=300), st.integers(2, 40))
def test_pieces_join_to_the_text_and_have_the_size(text: str, characters: int) -> None:
    cut = texts(pieces(Example("text", "a", text=text), characters))
    assert "".join(cut) == text
    assert all(len(piece) <= 1.5 * characters for piece in cut)
    assert len(cut) == 1 or all(len(piece) >= characters // 2 for piece in cut)


def test_pieces_end_at_blank_lines_then_newlines_then_spaces() -> None:
    example = Example("text", "a:1", text="aaaa bbbb\n\ncc dd\nee ff gg hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh")
    cut = pieces(example, 14)
    assert texts(cut) == ["aaaa bbbb\n\n", "cc dd\nee ff ", "gg hhhhhhhhhhh", "h" * 14, "h" * 15]
    assert cut[1].where == "a:1, characters 11 to 23"
    whole = Example("completion", "b", prompt="p", completion="c" * 100)
    assert documents([example, whole], 14) == [*cut, whole]
    assert documents([example], 1000) == [example]
    with pytest.raises(UsageError):
        pieces(whole, 14)


# installed text


def test_installed_docstrings_are_prose_from_all_over_the_packages() -> None:
    found = installed("docstrings", limit=60_000, packages=["stdlib", "numpy", "typer"])
    sizes: dict[str, int] = {}
    for example in found:
        sizes[example.where.split("/")[0]] = sizes.get(example.where.split("/")[0], 0) + len(example.text)
        assert len(example.text) >= 200
        assert sum(map(str.isascii, example.text)) >= 0.95 * len(example.text)
    assert 60_000 <= sum(sizes.values()) < 200_000
    assert min(sizes["stdlib"], sizes["numpy"], sizes["typer"]) > 5_000
    assert len(set(texts(found))) == len(found)
    assert [example.where for example in found] == sorted(example.where for example in found)
    assert not [example.where for example in found if "/tests/" in example.where]
    assert found == installed("docstrings", limit=60_000, packages=["stdlib", "numpy", "typer"])


def test_installed_docstrings_are_read_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "This is the first of the sentences that are read from the source of a package, and it is long enough. "
    package = tmp_path / "planted"
    (package / "tests").mkdir(parents=True)
    write(package / "__init__.py", f'"""{sentence * 2}"""', "raise SystemExit(3)")
    write(package / "b.py", f'def f():\n    """{sentence * 2}"""\n\n\ndef g():\n    """{sentence * 25}"""')
    write(package / "c.py", f'"""{"Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich. " * 9}"""')
    write(package / "d.py", f'"""{"x = f(y) ** 2; " * 30}"""', "def broken(:")
    write(package / "tests" / "e.py", f'"""{sentence * 3}"""')
    monkeypatch.syspath_prepend(tmp_path)
    found = installed("docstrings", packages=["planted"])
    # the sentence doubled stands in two modules, and the one whose path hashes lower keeps it
    assert sorted(texts(found)) == [(sentence * 2).strip(), (sentence * 25).strip()]
    assert [example.where for example in found if len(example.text) > 2000] == ["planted/b.py:6"]
    write(package / "same.py", (package / "b.py").read_text(encoding="utf-8").rstrip("\n"))
    code = installed("code", packages=["planted"])
    assert sorted(texts(code)) == sorted(
        (package / name).read_text() for name in ("__init__.py", "b.py", "c.py", "d.py")
    )


def test_installed_text_is_read_and_known_by_name() -> None:
    found = read("installed:reference:20000")
    assert found == installed("reference", limit=20_000)
    assert fingerprint("installed:reference:20000") == fingerprint("installed:reference:20000")
    assert fingerprint("installed:reference:20000") != fingerprint("installed:reference:40000")
    for name in ("installed:novels", "installed:code:many", "installed:", "installed:code:"):
        with pytest.raises(UsageError, match="is not understood: write one of installed:docstrings"):
            read(name)


def test_installed_code_and_reference() -> None:
    code = installed("code", limit=50_000)
    assert sum(len(example.text) for example in code) >= 50_000
    assert all(example.where.startswith("stdlib/") and example.where.endswith(".py") for example in code)
    for example in code:
        compile(example.text, example.where, "exec", dont_inherit=True)
    reference = installed("reference")
    assert len(reference) > 50
    assert "reference/for" in [example.where for example in reference]
    assert sum(len(example.text) for example in installed("reference", limit=1000)) < 100_000


def test_installed_refuses_what_is_not_there() -> None:
    with pytest.raises(UsageError, match="no installed text of kind 'poems'"):
        installed("poems")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'no_such_package' is not installed"):
        installed("code", packages=["no_such_package"])
    with pytest.raises(UsageError, match="limit is 0"):
        installed("code", limit=0)
    with pytest.raises(UsageError, match="packages cannot be chosen"):
        installed("reference", packages=["stdlib"])


def test_importing_the_package_does_not_import_torch() -> None:
    program = (
        "import sys, bakeoff.text as t; assert callable(t.read); assert not {'torch', 'datasets'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        __import__("bakeoff.text").text.nothing  # noqa: B018


# tokenising


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("length", [2, 3, 7, 1000])
def test_windows_predict_each_token_of_a_document_once(bos: bool, eos: bool, length: int) -> None:
    tok = tokenizer(bos=bos, eos=eos)
    for text in ("ab", "abc zyx w", "The quick brown fox, zebra, and fjord of Paris", "z" * 6, "z" * 7, "z" * 8):
        ids = [tok.bos_token_id] * bos + tok(text, add_special_tokens=False)["input_ids"] + [tok.eos_token_id] * eos
        if len(ids) < 2:
            continue
        encoded = encode([Example("text", "a:1", text=text)], tok, length)
        predicted = [label for item in encoded.items for label in item.labels[1:].tolist() if label != IGNORED]
        assert predicted == ids[1:]
        assert encoded.truncated == 0
        for item in encoded.items:
            assert 2 <= len(item.input_ids) == len(item.labels) <= length
            assert item.input_ids.dtype == item.labels.dtype == torch.int64
            assert item.where == "a:1"
            kept = item.labels != IGNORED
            assert torch.equal(item.labels[kept], item.input_ids[kept])
        firsts = [item.labels[0].item() for item in encoded.items]
        assert firsts == [ids[0]] + [IGNORED] * (len(firsts) - 1)
        joined = encoded.items[0].input_ids.tolist()
        for item in encoded.items[1:]:
            assert item.input_ids[0] == joined[-1]
            joined += item.input_ids[1:].tolist()
        assert joined == ids


def test_windows_do_not_cross_documents() -> None:
    tok = tokenizer()
    two = [Example("text", "a", text="zzz"), Example("text", "b", text="xx")]
    assert [tok.decode(item.input_ids) for item in encode(two, tok, 100).items] == ["zzz<|eos|>", "xx<|eos|>"]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    ("prompt", "completion"), [("What is ", "the answer"), ("the ques", "tion of the day"), ("", "a")]
)
def test_completions_learn_the_completion_after_the_prompts_own_tokens(bos: bool, prompt: str, completion: str) -> None:
    tok = tokenizer(bos=bos)
    [item] = encode([Example("completion", "a", prompt=prompt, completion=completion)], tok, 100).items
    before = tok(prompt)["input_ids"]
    assert item.input_ids[: len(before)].tolist() == before
    assert item.labels[: len(before)].tolist() == [IGNORED] * len(before)
    assert torch.equal(item.labels[len(before) :], item.input_ids[len(before) :])
    assert learnt(item, tok) == completion + "<|eos|>"


def test_the_boundary_case_really_merges_across_it() -> None:
    tok = tokenizer()
    assert tok("the question")["input_ids"][: len(tok("the ques")["input_ids"])] != tok("the ques")["input_ids"]


@pytest.mark.parametrize("bos", [False, True])
def test_long_completions_lose_the_left_of_the_prompt_then_the_end_of_the_completion(bos: bool) -> None:
    tok = tokenizer(bos=bos)
    begin = "<|begin|>" if bos else ""

    def cut(prompt: str, completion: str) -> tuple[str, str, int]:
        encoded = encode([Example("completion", "a", prompt=prompt, completion=completion)], tok, 8)
        [item] = encoded.items
        assert len(item.input_ids) <= 8
        assert (item.labels[1:] != IGNORED).sum() == (item.labels != IGNORED).sum()
        return tok.decode(item.input_ids), learnt(item, tok), encoded.truncated

    assert cut("yvw", "qqq") == (begin + "yvwqqq<|eos|>", "qqq<|eos|>", 0)
    assert cut("xxxxxyvw", "qqq") == (begin + ("yvw" if bos else "xyvw") + "qqq<|eos|>", "qqq<|eos|>", 1)
    # seven tokens follow the one that must stay before them
    assert cut("xyvw", "qzqzqzqz") == ((begin or "w") + "qzqzqzq", "qzqzqzq", 1)
    assert cut("w", "qzqzqzqz") == ((begin or "w") + "qzqzqzq", "qzqzqzq", 1)


TALK = (
    Message("system", "be brief"),
    Message("user", "zz"),
    Message("assistant", "yy"),
    Message("user", "xx"),
    Message("assistant", "ww"),
)


def test_messages_learn_the_turns_of_the_assistant() -> None:
    tok = tokenizer()
    [item] = encode([Example("messages", "a", messages=TALK)], tok, 500).items
    assert tok.decode(item.input_ids) == tok.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in TALK], tokenize=False
    )
    assert learnt(item, tok) == "yy<|end|>\nww<|end|>\n"
    answer = (item.labels != IGNORED).nonzero()[0, 0]
    assert tok.decode(item.input_ids[:answer]).endswith("zz<|end|>\n<|turn|>assistant\n")


def test_conversational_completions_learn_the_completion_alone() -> None:
    tok = tokenizer()
    example = Example("completion", "a", prompt=TALK[:4], completion=TALK[4:])
    [item] = encode([example], tok, 500).items
    assert learnt(item, tok) == "ww<|end|>\n"
    with pytest.raises(DataError, match="no turn of the assistant"):
        encode([Example("completion", "a", prompt=TALK[:1], completion=TALK[1:2])], tok, 500)


def test_templates_that_change_earlier_turns_give_an_item_a_turn() -> None:
    tok = tokenizer(template=LAST_DIFFERS)
    items = encode([Example("messages", "a", messages=TALK)], tok, 500).items
    assert [learnt(item, tok) for item in items] == ["<think></think>yy<|end|>\n", "<think></think>ww<|end|>\n"]
    assert "<think>" not in tok.decode(items[1].input_ids[items[1].labels == IGNORED])


def test_templates_without_a_generation_prompt() -> None:
    tok = tokenizer(template=NO_QUESTION)
    [item] = encode([Example("messages", "a", messages=TALK)], tok, 500).items
    assert learnt(item, tok) == "[assistant] yy [assistant] ww "


def test_an_assistant_who_speaks_first_and_a_user_who_speaks_last() -> None:
    tok = tokenizer()
    [item] = encode([Example("messages", "a", messages=TALK[2:4])], tok, 500).items
    assert learnt(item, tok) == tok.decode(item.input_ids) == "<|turn|>assistant\nyy<|end|>\n"


def test_long_conversations_keep_the_last_answer() -> None:
    tok = tokenizer(bos=True, template="<|begin|>" + CHAT)
    encoded = encode([Example("messages", "a", messages=TALK)], tok, 12)
    [item] = encoded.items
    assert (len(item.input_ids), encoded.truncated) == (12, 1)
    assert item.input_ids[0] == tok.bos_token_id
    assert learnt(item, tok) == "ww<|end|>\n"
    [item] = encode([Example("messages", "a", messages=TALK)], tok, 3).items
    assert tok.decode(item.input_ids) == "<|begin|>ww"


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(DataError, match="a:7: .* no chat template"):
        encode([Example("messages", "a:7", messages=TALK)], tokenizer(template=None), 100)
    with pytest.raises(DataError, match="a:7: .*refuses the conversation: only users"):
        encode(
            [Example("messages", "a:7", messages=TALK)], tokenizer(template="{{ raise_exception('only users') }}"), 9
        )
    with pytest.raises(DataError, match="a:7: .*leaves out"):
        encode([Example("messages", "a:7", messages=TALK)], tokenizer(template="nothing"), 100)
    with pytest.raises(DataError, match="a:7: preference pairs"):
        encode([Example("preference", "a:7", chosen="a", rejected="b")], tokenizer(), 100)
    with pytest.raises(DataError, match="a:7: .*fewer than 2 tokens"):
        encode([Example("text", "a:7", text="z")], tokenizer(eos=False), 100)
    with pytest.raises(UsageError, match="max_length is 1"):
        encode([], tokenizer(), 1)


def test_encoding_leaves_the_tokenizer_as_it_was() -> None:
    tok = tokenizer(bos=True)
    tok.model_max_length = 4
    before = tok.backend_tokenizer.to_str(), repr(tok), dict(tok.init_kwargs), tok.padding_side, tok.truncation_side
    encode([Example("text", "a", text="zz " * 50), Example("messages", "b", messages=TALK)], tok, 16)
    after = tok.backend_tokenizer.to_str(), repr(tok), dict(tok.init_kwargs), tok.padding_side, tok.truncation_side
    assert before == after


# real files

CORPORA = os.environ.get("BAKEOFF_CORPORA")
COUNTS = {
    "text/c4_demo.jsonl": ("text", 300),
    "text/gatsby.txt": ("text", 1),
    "text/inaugural.jsonl": ("text", 59),
    "text/masc_plain.jsonl": ("text", 392),
    "text/tinyshakespeare_first_half.txt": ("text", 1),
    "text/tinystories_sample.txt": ("text", 2316),
    "text/wiki_demo.txt": ("text", 1),
    "text/wikitext2_raw_test.txt": ("text", 1),
    "text/wikitext2_raw_valid.txt": ("text", 1),
    "instruct/dolly_hhrlhf_train_small.jsonl": ("completion", 1000),
    "reasoning/gsm8k_train.jsonl": ("completion", 7473),
    "reasoning/math_test.jsonl": ("completion", 5000),
    "preference/hh_harmless_base_test.jsonl.gz": ("preference", 2312),
    "reversal_curse/instructions_guidances.jsonl": ("completion", 307),
    "classification/sentence_polarity.tsv": ("text", 10662),
    "classification/subjectivity.tsv": ("text", 10000),
}


@pytest.mark.corpora
@pytest.mark.skipif(CORPORA is None, reason="needs BAKEOFF_CORPORA")
@pytest.mark.parametrize("name", COUNTS)
def test_real_files_are_read_whole(name: str) -> None:
    examples = read(Path(str(CORPORA)) / name)
    assert ({example.kind for example in examples}, len(examples)) == ({COUNTS[name][0]}, COUNTS[name][1])
    assert len({example.where for example in examples}) == len(examples)


@pytest.mark.corpora
@pytest.mark.skipif(CORPORA is None, reason="needs BAKEOFF_CORPORA")
def test_prompts_without_answers_are_refused() -> None:
    with pytest.raises(DataError, match=r"ifeval_input_data\.jsonl:1: the row has key, prompt"):
        read(Path(str(CORPORA)) / "instruct" / "ifeval_input_data.jsonl")


@pytest.mark.corpora
@pytest.mark.skipif(CORPORA is None, reason="needs BAKEOFF_CORPORA")
def test_a_real_book_is_cut_split_and_encoded_without_loss() -> None:
    [book] = read(Path(str(CORPORA)) / "text" / "gatsby.txt")
    cut = documents([book], 2000)
    assert "".join(texts(cut)) == book.text
    parts = split(cut, {"train": 0.9, "test": 0.1}, seed=0)
    tok = tokenizer()
    items = encode(parts["test"], tok, 128).items
    predicted = sum(int((item.labels[1:] != IGNORED).sum()) for item in items)
    assert predicted == sum(len(tok(example.text)["input_ids"]) for example in parts["test"])


def test_examples_of_a_task_are_prompts_and_completions() -> None:
    source = "task:sorting(symbols=9):2-3:20"
    examples = read(source)
    assert len(examples) == 20
    assert {e.kind for e in examples} == {"completion"}
    for example in examples:
        asked, answer = example.prompt.split(), example.completion.split()
        assert asked[-1] == ">"
        assert answer == [*sorted(asked[:-1], key=int), "."]
        assert example.prompt.endswith(" ")
    assert fingerprint(source) == fingerprint(source) != fingerprint("task:sorting(symbols=9):2-3:21")
    for wrong in ("task:sorting", "task:sorting:3", "task:boolean:5:10"):
        with pytest.raises(UsageError, match="task"):
            read(wrong)
