"""The API reference builds from the docstrings, without a warning."""

import warnings

import pytest

pdoc = pytest.importorskip("pdoc")


@pytest.mark.slow
def test_every_public_module_has_a_page(tmp_path):
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc("xmcgan", output_directory=tmp_path)
    page = (tmp_path / "xmcgan/models/generator.html").read_text("utf-8")
    assert "Generator" in page
    assert (tmp_path / "xmcgan/losses/contrastive.html").is_file()
