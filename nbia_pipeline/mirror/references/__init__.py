"""What a run fetches because of references: the images that annotations are drawn on, and annotations of images.

A reference names an instance, and often the series and the study that it is in. :mod:`.edges` reads the references of
series in the lake, :mod:`.finder` finds the series that they lead to, in whatever study or collection, and
:mod:`.closure` fetches these and goes on with what they refer to, until nothing is new:

1. Begin with the series that the run selects and that are in the lake: not only those that it fetched, so that a second
   run finds the same, and nothing to fetch.
2. For ``annotations``: fetch the series of annotations of the same patients, whatever collection lists them, since only
   their files state what they refer to. Go on with those that refer to the selected images, also by way of others.
3. For ``images``: fetch what these refer to, then what that refers to: a dose, its plan, its structure set, its images.

Only references that files state are followed. A series that is named is fetched like that of a cart, by the same plan,
and its receipt is in the tables of its collection, with the Reason for whom it was fetched. The bounds of the run hold
for all of it. What was fetched before an error or an interrupt is committed.
"""
