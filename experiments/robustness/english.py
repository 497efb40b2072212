"""Windows of English prose for run.py --tokens. english.npz: the licence texts that every Debian machine has (package base-files; all of them may
be copied verbatim). Others: the text files of a folder in the order of their names, as those of Debian's package git:

    python english.py --model DIR --out english.npz          # needs tokenizers
    python english.py --model DIR --texts /usr/share/doc/git/RelNotes --all --out release_notes.npz
"""
import argparse
import pathlib

import numpy as np
import tokenizers

TEXTS = ["GPL-3", "GFDL-1.3", "Apache-2.0", "MPL-2.0", "LGPL-2.1", "Artistic", "MPL-1.1", "CC0-1.0", "GPL-1", "GPL-2"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="folder with tokenizer.json; token 1 begins a document")
    parser.add_argument("--texts", type=pathlib.Path, default=pathlib.Path("/usr/share/common-licenses"))
    parser.add_argument("--all", action="store_true", help="all *.txt of the folder instead of the licence texts")
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    tokenizer = tokenizers.Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    stream = []
    for name in sorted(path.name for path in arguments.texts.glob("*.txt")) if arguments.all else TEXTS:
        stream += [1] + tokenizer.encode((arguments.texts / name).read_text(encoding="utf-8", errors="replace")).ids
    stream = np.array(stream, np.uint16)
    count = (len(stream) - 1) // arguments.ctx
    windows = np.stack([stream[i * arguments.ctx : i * arguments.ctx + arguments.ctx + 1] for i in range(count)])
    np.savez_compressed(arguments.out, tokens=windows)
    print(f"{len(stream)} tokens, {count} windows of {arguments.ctx}: {arguments.out}")


if __name__ == "__main__":
    main()
