from dnnsep.cli import main

main()
