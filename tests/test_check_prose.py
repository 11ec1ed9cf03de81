"""`tools/check_prose.py`, which `make lint` runs over the whole repository."""

import importlib.util

import pytest

from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("check_prose", ROOT / "tools/check_prose.py")
check_prose = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_prose)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.py", "x = 1  # what it is told\n", [(1, "told")]),
        ("a.py", '"""It is taken\nfor a list."""\n', [(1, "taken for")]),
        ("a.py", "# The file is\n# no list.\n", [(1, "is no")]),
        ("a.py", 'raise ValueError("the file is "\n  "no list")\n', [(1, "is no")]),
        ("a.py", "# There is no list; it is no longer read.\nso_many = told\n", []),
        ("a.py", "# So\nx = 1\n# many\n", []),
        ("a.md", "Rows, of which\n\nso many are drawn.\n", [(3, "so many")]),
        ("a.md", "Run `tell` or\n\n```bash\ntell\n```\n", []),
        ("a.smk", "# What `train` is told\n", [(1, "told")]),
    ],
)
def test_banned_phrases_are_found_in_prose_alone(tmp_path, capsys, name, text, found):
    path = tmp_path / name
    path.write_text(text)
    assert [finding[:2] for finding in check_prose.findings(check_prose.prose(path))] == found
    assert check_prose.main([str(path)]) == bool(found)
    assert all(f"{path}:{line}: '{phrase}': " in capsys.readouterr().out for line, phrase in found)


def test_every_exception_is_used():
    for (name, piece), reason in check_prose.ALLOWED.items():
        assert reason and piece in (ROOT / name).read_text(), f"{name} has no '{piece}' any longer"
