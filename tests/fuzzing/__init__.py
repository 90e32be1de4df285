"""Bad input, room by room: what each reader is fed, what is right, and the inputs that were once wrong (`tests/corpus`)."""
