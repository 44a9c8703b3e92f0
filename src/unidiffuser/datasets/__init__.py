"""Where samples come from: people's data in any of several formats, encoded data, and worlds of our own.

    data = open_data("folder")          a folder, a file, a declaration data.json, or encoded data
    data.pairs[i]                       {"image": picture, "text": "a red circle"}: the same whenever it is asked for
    data.pairs.label_of(i)              the label token of the source it comes from
    data.kinds["image"]                 {"kind": "image", "size": 64}: how its codec is to be fitted
    data.values("text", most=10_000)    raw values of one modality, all captions, to fit it on
    data.codecs                         None; of encoded data the fitted codecs, and pairs[i] is stream -> tensor
    data.digest, data.report()          what the data are, and what is used, left out, damaged, and why

`pairs` may be longer than the data have rows: rows of five captions take five turns, sources mixed by weight are gone
through until the rarest was, joined rows meet other partners every turn. `data.samples` says how many rows there are.
While samples are read, damaged ones are counted and replaced by the next; `DataLost`, a ValueError, says that a run
should save and stop: more is damaged than the budget allows, or the folder is gone.

One file a format (`formats` lists them), one package a world (`scenes`). A data set knows nothing of networks, codecs'
insides or training.
"""

from unidiffuser.datasets.data import Data
from unidiffuser.datasets.faults import DataLost
from unidiffuser.datasets.opening import open_data
from unidiffuser.datasets.pairs import Pairs

__all__ = ["Data", "DataLost", "Pairs", "open_data"]
