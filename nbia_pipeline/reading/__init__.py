"""The lake in people's hands: its tables as frames and in SQL, its images as volumes."""
