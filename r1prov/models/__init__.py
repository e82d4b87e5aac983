"""What a model is made of and where its files come from: the catalogue, GGUF headers, MLA form. Knows no site and no machine."""
