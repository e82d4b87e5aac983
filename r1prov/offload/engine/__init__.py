"""Lays out the memory of a batch as the pinned llama.cpp does: the graph, the devices of its nodes, the buffers.

    tensors (what a node is) ──► builder: deepseek2, llama, presumed (the graph) ──► numbered (once for all placements)
                                                                                             │
                                                                  buffers (bytes) ◄── schedule (devices, copies)

It is pure arithmetic and repeats what the engine does before it allocates, so a plan needs no engine, no GPU and no file. It holds for
the pinned version only. Before another version is pinned, read what changed in it and run tests/cuda/ask_memory.py again.
"""
