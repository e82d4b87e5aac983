"""The transfer at the full size of R1: on a disk without content, from a server that invents the weights (`make fullsize`)."""
