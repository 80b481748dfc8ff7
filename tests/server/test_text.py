"""The tokenizer facade: loading, templates, and the errors of both."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import tiny_config, tiny_tokenizer

from weft.server.detokenizer import TokenizerUnusable
from weft.server.text import ChatTemplateError, Text

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_config("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def with_template(template: str | None) -> Text:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Text(tokenizer)


def test_a_folder_gives_back_what_was_saved(folder: Path) -> None:
    text = Text.load(str(folder))
    assert text.decode(text.encode("hello 日本")) == "hello 日本"
    assert text.encode_chat(MESSAGES) == Text(tiny_tokenizer()).encode_chat(MESSAGES)


def test_a_folder_without_tokenizer_says_so(tmp_path: Path) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    with pytest.raises(TokenizerUnusable, match=r"tokenizer\.json"):
        Text.load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("tokenizer.json", content) for content in ("", "{", "{}", "[]", '{"model": 5}')),
        *(("tokenizer_config.json", content) for content in ("", "{", "[]")),
    ],
)
def test_a_broken_tokenizer_says_so(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(TokenizerUnusable, match="tokenizer"):
        Text.load(str(folder))


def test_truncation_in_the_file_does_not_cut_prompts() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    assert len(Text(tokenizer).encode("abcdefghi")) == len(
        Text(tiny_tokenizer()).encode("abcdefghi")
    )


def test_without_a_template_completions_work_and_chat_explains() -> None:
    text = with_template(None)
    assert text.encode("x")
    with pytest.raises(ChatTemplateError, match="no chat template"):
        text.encode_chat(MESSAGES)


def test_what_a_template_says_on_purpose_is_passed_on() -> None:
    text = with_template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ChatTemplateError, match=r"^roles must alternate$"):
        text.encode_chat(MESSAGES)


@pytest.mark.parametrize(
    "template",
    ["{{ messages[7].content.x }}", "{{ 1 + 'a' }}", "{{ ''.__class__.__mro__ }}", "{{ 1 // 0 }}"],
)
def test_what_a_template_stumbles_over_is_not(template: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"^the model's chat template refuses them$"):
        with_template(template).encode_chat(MESSAGES)


def test_the_default_one_of_several_templates_is_used() -> None:
    text = with_template({"default": "d", "tool_use": "t"})  # type: ignore[arg-type]
    assert text.decode(text.encode_chat(MESSAGES)) == "d"


def test_developer_is_system_unless_the_template_knows_better() -> None:
    developer = [{"role": "developer", "content": "x"}]
    roles = "{% for m in messages %}{{ m.role }}{% endfor %}"
    plain = with_template(roles)
    assert plain.decode(plain.encode_chat(developer)) == "system"
    aware = with_template(roles + "{# developer #}")
    assert aware.decode(aware.encode_chat(developer)) == "developer"


def test_neither_the_app_nor_a_plain_tokenizer_loads_torch(folder: Path) -> None:
    code = (
        "import sys, weft.server.app; from weft.server.text import Text;"
        "Text.load(sys.argv[1]); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_a_class_of_its_own_reads_the_same_tokenizer(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    fields = json.loads(config.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}
    config.write_text(json.dumps(fields))
    text = Text.load(str(folder))
    assert text.decode(text.encode("hello 日本")) == "hello 日本"
