# source -> extra instruction sets
