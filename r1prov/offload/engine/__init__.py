"""How the pinned llama.cpp lays out the memory of a batch: the graph, the devices of its nodes, the buffers. Pure arithmetic.

    tensors (what a node is) ──► builder: deepseek2, llama, presumed (the graph) ──► numbered (once for all placements)
                                                                                             │
                                                                  buffers (bytes) ◄── schedule (devices, copies)

It does on paper what the engine does before it allocates, so that a plan needs neither engine nor GPU nor file. It is bound to the
pinned version: another version means asking it again (tests/cuda/ask_memory.py) and reading what changed.
"""
