"`python -m hff`: the command line"
from hff.cli import main

if __name__=="__main__": raise SystemExit(main())
