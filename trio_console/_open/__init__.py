"""Opening a guest, connecting to one, and serving one: here the console and the frames meet.

An ending always has the same order, and one deadline, the grace: the guest is told to shut down; its last frames
are delivered; its console is closed; its processes on this machine are killed if they still run; the console's
workers are joined. Leaving takes no longer than the grace, whatever the guest does.
"""
