"""The generated reference: config/README.md and config/schema.json."""

import pytest

from nested_reft.config import reference
from nested_reft.config.study import Study
from nested_reft.config.templates import TEMPLATES
from nested_reft.mitigation import MITIGATIONS
from tests.conftest import ROOT


def test_schema_and_readme_follow_the_models():
    """When this fails, run `nested-reft schema`."""
    assert (ROOT / "config/schema.json").read_text() == reference.schema()
    assert (ROOT / "config/README.md").read_text() == reference.readme()


def test_schema_and_readme_list_the_names_of_each_registry():
    sections = Study.model_json_schema()["$defs"]
    assert sections["Grid"]["properties"]["mitigation"]["items"]["enum"] == list(MITIGATIONS)
    assert sections["Prompt"]["properties"]["template"]["anyOf"][0]["enum"] == list(TEMPLATES)
    lines = reference.readme().splitlines()
    for key, names in (("grid.mitigation", MITIGATIONS), ("prompt.template", TEMPLATES)):
        (line,) = [line for line in lines if line.startswith(f"| `{key}` ")]
        assert f"Choices: {', '.join(f'`{name}`' for name in names)}." in line


@pytest.mark.parametrize("field", ["source", "unit"])
def test_every_key_has_a_description_an_origin_and_a_unit(field):
    for name, key, _ in reference.keys(Study):
        assert key.description and key.description.endswith("."), name
        assert field in key.json_schema_extra, name


def test_every_section_says_what_it_reruns():
    assert set(reference.RERUNS) == set(Study.model_fields)
