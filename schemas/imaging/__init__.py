"""Medical imaging: uploaded DICOM files become searchable studies, series and instances."""

from __future__ import annotations

from schemas.declare import Evidence, Pipeline, Processor, Table, Topic

DICOM_UPLOADS = Topic(
    domain="imaging",
    name="dicom-uploads",
    key="study_uid",
    owner="imaging",
    about="A DICOM file has arrived; its bytes lie in the object store under the digest.",
)
DICOM_INSTANCES = Topic(
    domain="imaging",
    name="dicom-instances",
    key="study_uid",
    owner="imaging",
    about="What an uploaded file says of its patient, study, series and instance.",
)

# Stateless: an answer depends on the upload's own bytes alone, and every table drops what comes again.
# A hostile file may take 24 s until it is given up; four of them stay within max.poll.interval.ms.
IMAGING_INGEST = Processor(
    name="imaging-ingest",
    sources=(DICOM_UPLOADS,),
    outputs=(DICOM_INSTANCES,),
    stateful=False,
    batch_records=4,
)

# All tables: first wins. The newest upload must not win, as the retry of an old upload would then undo
# what came after it; and one stray file must not silently rename a study's patient. A file that says
# otherwise stays in instance_uploads, and the views dicom_uploads and study_conflicts show it.
STUDIES = Table(
    name="studies",
    topic=DICOM_INSTANCES,
    key=("tenant", "study_uid"),
    columns=(
        "tenant",
        "study_uid",
        "event_id",
        "uploaded_at",
        "patient_id",
        "patient_name",
        "patient_birth_date",
        "patient_sex",
        "study_date",
        "study_time",
        "study_description",
        "study_id",
        "accession_number",
        "referring_physician_name",
    ),
)
SERIES = Table(
    name="series",
    topic=DICOM_INSTANCES,
    key=("tenant", "study_uid", "series_uid"),
    columns=(
        "tenant",
        "study_uid",
        "series_uid",
        "event_id",
        "uploaded_at",
        "patient_id",
        "modality",
        "series_number",
        "series_description",
        "series_date",
        "series_time",
        "body_part",
        "manufacturer",
        "institution_name",
    ),
)
# The study belongs to the key: two studies that claim one SOP Instance UID lie in two partitions, whose
# order of arrival at the sink is nobody's to decide.
INSTANCES = Table(
    name="instances",
    topic=DICOM_INSTANCES,
    key=("tenant", "study_uid", "sop_instance_uid"),
    columns=(
        "tenant",
        "study_uid",
        "sop_instance_uid",
        "series_uid",
        "event_id",
        "uploaded_at",
        "sop_class_uid",
        "transfer_syntax_uid",
        "digest",
        "size_bytes",
        "patient_id",
        "instance_number",
        "number_of_frames",
        "rows",
        "columns",
        "bits_allocated",
        "photometric_interpretation",
        "thumbnail_digest",
        "thumbnail_reason",
        "notes",
        "code_version",
    ),
)
INSTANCE_UPLOADS = Table(
    name="instance_uploads",
    topic=DICOM_INSTANCES,
    key=("tenant", "event_id"),
    columns=(
        "tenant",
        "event_id",
        "uploaded_at",
        "patient_id",
        "study_uid",
        "series_uid",
        "sop_instance_uid",
        "digest",
        "size_bytes",
        "source",
        "filename",
    ),
)

PIPELINE = Pipeline(
    name="imaging",
    about="DICOM files are checked, indexed for QIDO-RS and given a thumbnail.",
    inputs=(DICOM_UPLOADS,),
    processors=(IMAGING_INGEST,),
    tables=(STUDIES, SERIES, INSTANCES, INSTANCE_UPLOADS),
    evidence=(
        Evidence(
            topic=DICOM_UPLOADS,
            table="instance_uploads",
            column="event_id",
            sums=(("size_bytes", "size_bytes"),),
        ),
    ),
)
