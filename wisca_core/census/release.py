"""``python -m wisca_core.census.release``: write anew the results of the census that come with a version, from what is
kept.
"""

import sys

from wisca_core.census.kept import entries
from wisca_core.census.known import all_types
from wisca_core.census.released import write

if __name__ == "__main__":
    print(write(entries(all_types())))
    sys.exit(0)
