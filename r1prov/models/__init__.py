"""Models and the sources of their files: the catalogue, GGUF headers, MLA form. This wing knows no site and no machine."""
