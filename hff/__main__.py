"`python -m hff`, for where the command is started by another one: torchrun, srun, a workflow"
from hff.cli import main

main()
