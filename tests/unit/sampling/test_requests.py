from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from opensora.datasets.table import write_table
from opensora.errors import ConfigError
from opensora.sampling.metadata import file_stem
from opensora.sampling.reference_frames import ReferenceKeys
from opensora.sampling.requests import collect_requests, read_prompts

RUN = dict(num_frames=16, image_size=(32, 48), fps=8.0, seed=42)


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_flags_come_before_the_file_and_each_prompt_is_repeated(tmp_path: Path) -> None:
    file = write(tmp_path / "prompts.txt", "\ufeffa cat\r\n\r\n   \n  a dog, running \n")
    requests = collect_requests(["a fish"], file, num_sample=2, negative_prompt="blurry", **RUN)
    assert [(r.prompt, r.index, r.repeat) for r in requests] == [
        ("a fish", 0, 0), ("a fish", 0, 1), ("a cat", 1, 0), ("a cat", 1, 1), ("a dog, running", 2, 0), ("a dog, running", 2, 1)
    ]  # fmt: skip
    assert {(r.num_frames, r.height, r.width, r.fps, r.seed, r.negative_prompt) for r in requests} == {
        (16, 32, 48, 8.0, 42, "blurry")
    }


def test_rows_of_a_csv_override_the_run(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.csv",
        "path,text,seed,num_frames,height,width,fps,negative_prompt\n"
        'x.mp4,"a cat, a ""big"" one",9007199254740993,1,64,80,23.976,dark\n'
        "y.mp4,a dog,,,,,,\n",
    )
    cat, dog = collect_requests(None, file, **RUN)
    assert (cat.prompt, cat.seed, cat.num_frames, cat.height, cat.width, cat.fps, cat.negative_prompt) == (
        'a cat, a "big" one', 9007199254740993, 1, 64, 80, 23.976, "dark"
    )  # fmt: skip
    assert (dog.seed, dog.num_frames, dog.height, dog.width, dog.fps, dog.negative_prompt) == (42, 16, 32, 48, 8.0, "")


def test_parquet_reads_as_csv_does(tmp_path: Path) -> None:
    table = pa.table({"text": ["a cat", "a dog"], "seed": [7.0, None], "num_frames": [float("nan"), 8.0]})
    pa.parquet.write_table(table, tmp_path / "p.parquet")
    cat, dog = collect_requests([], str(tmp_path / "p.parquet"), **RUN)
    assert (cat.prompt, cat.seed, cat.num_frames) == ("a cat", 7, 16)
    assert (dog.prompt, dog.seed, dog.num_frames) == ("a dog", 42, 8)


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_cells_without_a_value_take_those_of_the_run(tmp_path: Path, name: str) -> None:
    words = ["nan", "None", "N/A", "<NA>", "null", "", "\u200b"]
    rows = [{"text": "a", "negative_prompt": w, "reference_path": w, "seed": w, "fps": w} for w in words]
    write_table(str(tmp_path / name), rows)
    for request in collect_requests(None, str(tmp_path / name), negative_prompt="dark", **RUN):
        assert (request.negative_prompt, request.seed, request.fps, request.conditioning) == ("dark", 42, 8.0, None)


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("a cat\na dog\n".encode("utf-16"), ["a cat", "a dog"]),
        (b"a cat\ra dog\r", ["a cat", "a dog"]),
        ("None\n\u200b\n-rain; \u202bx\u202c/../y\0z".encode(), ["None", "-rain; \u202bx\u202c/../y\0z"]),
    ],
)
def test_odd_lines_of_a_text_file(tmp_path: Path, content: bytes, prompts: list[str]) -> None:
    requests = collect_requests(None, write(tmp_path / "p.txt", content), **RUN)
    assert [request.prompt for request in requests] == prompts
    assert all("/" not in file_stem(request) and "\0" not in file_stem(request) for request in requests)


def test_tables_with_tabs(tmp_path: Path) -> None:
    [request] = collect_requests(None, write(tmp_path / "p.tsv", "text\tseed\na cat, a dog\t7\n"), **RUN)
    assert (request.prompt, request.seed) == ("a cat, a dog", 7)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("seed", float(2**60), "row 1: seed is 1.15"),
        ("num_frames", True, "row 1: num_frames is True"),
        ("text", ["a"], r"row 1: text is \['a'\]"),
    ],
)
def test_odd_cells_of_a_parquet(tmp_path: Path, column: str, value: object, message: str) -> None:
    pa.parquet.write_table(pa.table({"text": ["a"]} | {column: [value]}), tmp_path / "p.parquet")
    with pytest.raises(ConfigError, match=message):
        collect_requests(None, str(tmp_path / "p.parquet"), **RUN)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"fine\nca\xf1on\n", r"p.txt, line 2: .*0xf1.*UTF-8"),
        ("p.txt", "\n \n", "prompt"),
        ("p.csv", "text,seed\na,1\n,2\n", r"p.csv, line 3: .*empty"),
        ("p.csv", "caption\na\n", "caption.*'text'"),
        ("p.csv", "", "none"),
        ("p.csv", "text\na red, round thing\n", "line 2: .*header"),
        ("p.csv", "text,seed\na,soon\n", "line 2: seed.*'soon'.*whole number"),
        ("p.csv", "text,num_frames\na,2.5\n", "line 2: num_frames.*'2.5'.*whole number"),
        ("p.csv", "text,fps\na,fast\n", "line 2: fps.*'fast'.*number"),
        ("p.csv", "text,height\na,0\n", "line 2: height.*0"),
        ("p.csv", "text,fps\na,inf\n", "line 2: fps.*inf"),
        ("p.csv", 'text,seed\na,1\n"b, 2\nc,3\n', "line 3: a quote opens and is not closed"),
        ("p.csv", 'text,seed\n"a" cat,1\n', "line 2: text follows a closing quote"),
        ("p.csv", 'text,seed\n"two\nlines",1\nb,x\n', "line 4: seed.*'x'"),
        ("p.csv", "text,seed\na,1\nNaN,2\n", "line 3: the prompt is 'NaN'"),
        ("p.csv", "text,seed\na,1\n\u200b,2\n", "line 3: the prompt is empty"),
        ("p.csv", b"text,seed\ncaf\xe9,1\n", "line 2: column 'text' is not UTF-8"),
        ("p.csv", "text,text\na,b\n", "column 'text' comes 2 times"),
        ("p.xlsx", "", r"\.xlsx.*csv"),
        ("p.jsonl", '{"text": "a"}\n', r"\.jsonl.*csv"),
        ("p.csv", "PK\x03\x04", "zip archive"),
        ("p.csv", "text,fps\na,9999\n", "line 2: fps.*9999.0.*0.1 to 240"),
        ("p.csv", "text,loop\na,0\n", "line 2: loop is 0; it is 1 or more clips"),
        ("p.csv", "text,loop\na,twice\n", "line 2: loop is 'twice'; it is a whole number"),
        ("p.csv", "text,strength\na,1.5\n", "line 2: strength is '1.5'; it is a number above 0 and up to 1"),
        ("p.csv", "text,strength\na,\nb,strong\n", "line 3: strength is 'strong'; it is a number above 0"),
        ("p.csv", "text,backward\na,maybe\n", "line 2: backward is 'maybe'; it is true or false"),
        ("p.csv", "text,first_frame\na,b.png\n", "line 2: first_frame: not taken here"),
        ("p.parquet", "text\n", "not a Parquet file"),
    ],
)
def test_bad_files_are_sentences_with_a_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        collect_requests(None, write(tmp_path / name, content), **RUN)


def test_every_row_has_a_loop_of_its_own(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", "text,loop\n|0|a cat|1|a dog,2\na fish,\n")
    two, one = collect_requests(None, file, reference_keys=ReferenceKeys(loop=1), **RUN)
    assert two.conditioning is not None
    assert (two.conditioning.loop, one.conditioning) == (2, None)


def test_whole_and_broken_fps_are_one_request() -> None:
    whole, broken = (collect_requests(["a"], None, **{**RUN, "fps": fps})[0] for fps in (8, 8.0))
    assert file_stem(whole) == file_stem(broken)


def test_bad_flags_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prompt"):
        collect_requests([], None, **RUN)
    with pytest.raises(ConfigError, match=r"prompt 2: .*empty"):
        collect_requests(["a", "  "], None, **RUN)
    with pytest.raises(ConfigError, match=r"prompt 1: .*UTF-8"):
        collect_requests([b"ca\xf1on".decode("utf-8", "surrogateescape")], None, **RUN)
    with pytest.raises(ConfigError, match=r"num_sample.*0"):
        collect_requests(["a"], None, num_sample=0, **RUN)
    with pytest.raises(ConfigError, match=r"none\.txt.*No such file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(ConfigError, match=r"Is a directory"):
        read_prompts(tmp_path)
