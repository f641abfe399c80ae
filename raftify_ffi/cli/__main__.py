"""`python -m raftify_ffi.cli`."""

from . import main

if __name__ == "__main__":
    main()
