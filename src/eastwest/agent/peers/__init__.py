"""Who is at the other end of a plaintext connection: the process, while it is there, in the kernel's words.

A plaintext caller proves nothing, so nothing is decided by what stands here; it is for people who have to find the
caller. Start at ``finder.py``; what the kernel vouches for, and what is the process's own claim, is said in
``processes.py``. Callers in containers are seen (``namespaces.py``), those on other nodes are not.
"""
