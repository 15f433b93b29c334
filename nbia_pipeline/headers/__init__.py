"""What the headers of the files say: elements, geometry, references and annotations, as tables of the lake."""
