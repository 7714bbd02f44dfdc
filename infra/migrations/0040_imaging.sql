-- Medical imaging: the index of DICOM studies, series and instances. The files lie in the object store.

CREATE TABLE studies (
    tenant                    text NOT NULL,
    study_uid                 text NOT NULL CHECK (study_uid ~ '^[0-9.]{1,64}$'),
    event_id                  text NOT NULL,
    uploaded_at               timestamptz NOT NULL,
    patient_id                text,
    patient_name              text,
    patient_birth_date        date,
    patient_sex               text,
    study_date                date,
    study_time                time,
    study_description         text,
    study_id                  text,
    accession_number          text,
    referring_physician_name  text,
    source_partition          integer NOT NULL,
    source_offset             bigint NOT NULL,
    PRIMARY KEY (tenant, study_uid)
);
CREATE INDEX studies_by_patient ON studies (tenant, patient_id);
CREATE INDEX studies_by_date ON studies (tenant, study_date DESC);
CREATE INDEX studies_by_accession ON studies (tenant, accession_number);
COMMENT ON TABLE studies IS 'One row per study, as the first instance that arrived describes it: a later file never renames a study or its patient (see study_conflicts)';
COMMENT ON COLUMN studies.tenant IS 'Owner of the files';
COMMENT ON COLUMN studies.study_uid IS '(0020,000D) Study Instance UID';
COMMENT ON COLUMN studies.event_id IS 'The upload that brought the study';
COMMENT ON COLUMN studies.uploaded_at IS 'When that upload was received';
COMMENT ON COLUMN studies.patient_id IS '(0010,0020) Patient ID, as the sender assigned it';
COMMENT ON COLUMN studies.patient_name IS '(0010,0010) Family^Given^Middle^Prefix^Suffix; alphabetic, ideographic and phonetic groups joined by =';
COMMENT ON COLUMN studies.patient_birth_date IS '(0010,0030) Patient''s Birth Date';
COMMENT ON COLUMN studies.patient_sex IS '(0010,0040) Patient''s Sex: M, F or O';
COMMENT ON COLUMN studies.study_date IS '(0008,0020) Study Date, local to the device';
COMMENT ON COLUMN studies.study_time IS '(0008,0030) Study Time, local to the device';
COMMENT ON COLUMN studies.study_description IS '(0008,1030) Study Description';
COMMENT ON COLUMN studies.study_id IS '(0020,0010) Study ID';
COMMENT ON COLUMN studies.accession_number IS '(0008,0050) Accession Number: the order in the information system';
COMMENT ON COLUMN studies.referring_physician_name IS '(0008,0090) Referring Physician''s Name';
COMMENT ON COLUMN studies.source_partition IS 'Partition of dicom-instances that the row came from';
COMMENT ON COLUMN studies.source_offset IS 'Offset in that partition';

CREATE TABLE series (
    tenant              text NOT NULL,
    study_uid           text NOT NULL,
    series_uid          text NOT NULL CHECK (series_uid ~ '^[0-9.]{1,64}$'),
    event_id            text NOT NULL,
    uploaded_at         timestamptz NOT NULL,
    modality            text,
    series_number       integer,
    series_description  text,
    series_date         date,
    series_time         time,
    body_part           text,
    manufacturer        text,
    institution_name    text,
    source_partition    integer NOT NULL,
    source_offset       bigint NOT NULL,
    PRIMARY KEY (tenant, study_uid, series_uid)
);
COMMENT ON TABLE series IS 'One row per series, as its first instance describes it';
COMMENT ON COLUMN series.tenant IS 'Owner of the files';
COMMENT ON COLUMN series.study_uid IS '(0020,000D) Study Instance UID';
COMMENT ON COLUMN series.series_uid IS '(0020,000E) Series Instance UID';
COMMENT ON COLUMN series.event_id IS 'The upload that brought the series';
COMMENT ON COLUMN series.uploaded_at IS 'When that upload was received';
COMMENT ON COLUMN series.modality IS '(0008,0060) Modality, as CT, MR, US';
COMMENT ON COLUMN series.series_number IS '(0020,0011) Series Number';
COMMENT ON COLUMN series.series_description IS '(0008,103E) Series Description';
COMMENT ON COLUMN series.series_date IS '(0008,0021) Series Date, local to the device';
COMMENT ON COLUMN series.series_time IS '(0008,0031) Series Time, local to the device';
COMMENT ON COLUMN series.body_part IS '(0018,0015) Body Part Examined';
COMMENT ON COLUMN series.manufacturer IS '(0008,0070) Manufacturer of the device';
COMMENT ON COLUMN series.institution_name IS '(0008,0080) Institution Name';
COMMENT ON COLUMN series.source_partition IS 'Partition of dicom-instances that the row came from';
COMMENT ON COLUMN series.source_offset IS 'Offset in that partition';

CREATE TABLE instances (
    tenant                      text NOT NULL,
    study_uid                   text NOT NULL,
    sop_instance_uid            text NOT NULL CHECK (sop_instance_uid ~ '^[0-9.]{1,64}$'),
    series_uid                  text NOT NULL,
    event_id                    text NOT NULL,
    uploaded_at                 timestamptz NOT NULL,
    sop_class_uid               text NOT NULL,
    transfer_syntax_uid         text NOT NULL,
    digest                      text NOT NULL CHECK (digest ~ '^[0-9a-f]{64}$'),
    size_bytes                  bigint NOT NULL CHECK (size_bytes > 0),
    patient_id                  text,
    instance_number             integer,
    number_of_frames            integer,
    rows                        integer,
    columns                     integer,
    bits_allocated              integer,
    photometric_interpretation  text,
    thumbnail_digest            text CHECK (thumbnail_digest ~ '^[0-9a-f]{64}$'),
    thumbnail_reason            text,
    notes                       text[] NOT NULL,
    code_version                integer NOT NULL,
    source_partition            integer NOT NULL,
    source_offset               bigint NOT NULL,
    PRIMARY KEY (tenant, study_uid, sop_instance_uid),
    CHECK ((thumbnail_digest IS NULL) <> (thumbnail_reason IS NULL))
);
CREATE INDEX instances_by_series ON instances (tenant, study_uid, series_uid);
CREATE INDEX instances_by_sop ON instances (sop_instance_uid);
COMMENT ON TABLE instances IS 'One row per instance: the first file that arrived with its UID; by the standard other content has another UID';
COMMENT ON COLUMN instances.tenant IS 'Owner of the files';
COMMENT ON COLUMN instances.study_uid IS '(0020,000D) Study Instance UID';
COMMENT ON COLUMN instances.sop_instance_uid IS '(0008,0018) SOP Instance UID';
COMMENT ON COLUMN instances.series_uid IS '(0020,000E) Series Instance UID';
COMMENT ON COLUMN instances.event_id IS 'The upload that brought the instance';
COMMENT ON COLUMN instances.uploaded_at IS 'When that upload was received';
COMMENT ON COLUMN instances.sop_class_uid IS '(0008,0016) SOP Class UID: the kind of object';
COMMENT ON COLUMN instances.transfer_syntax_uid IS '(0002,0010) Transfer Syntax UID: how the file is encoded';
COMMENT ON COLUMN instances.digest IS 'SHA-256 of the file: its name in the object store';
COMMENT ON COLUMN instances.size_bytes IS 'Size of the file in bytes';
COMMENT ON COLUMN instances.patient_id IS '(0010,0020) Patient ID in this file';
COMMENT ON COLUMN instances.instance_number IS '(0020,0013) Instance Number: place in the series';
COMMENT ON COLUMN instances.number_of_frames IS '(0028,0008) Number of Frames';
COMMENT ON COLUMN instances.rows IS '(0028,0010) Rows of a frame, pixels';
COMMENT ON COLUMN instances.columns IS '(0028,0011) Columns of a frame, pixels';
COMMENT ON COLUMN instances.bits_allocated IS '(0028,0100) Bits Allocated to a sample';
COMMENT ON COLUMN instances.photometric_interpretation IS '(0028,0004) Photometric Interpretation';
COMMENT ON COLUMN instances.thumbnail_digest IS 'SHA-256 of the thumbnail (PNG) in the object store';
COMMENT ON COLUMN instances.thumbnail_reason IS 'Why there is no thumbnail';
COMMENT ON COLUMN instances.notes IS 'What is unusual about the file';
COMMENT ON COLUMN instances.code_version IS 'Version of the processor that read the file';
COMMENT ON COLUMN instances.source_partition IS 'Partition of dicom-instances that the row came from';
COMMENT ON COLUMN instances.source_offset IS 'Offset in that partition';

CREATE TABLE instance_uploads (
    tenant            text NOT NULL,
    event_id          text NOT NULL,
    uploaded_at       timestamptz NOT NULL,
    study_uid         text NOT NULL,
    series_uid        text NOT NULL,
    sop_instance_uid  text NOT NULL,
    digest            text NOT NULL CHECK (digest ~ '^[0-9a-f]{64}$'),
    size_bytes        bigint NOT NULL CHECK (size_bytes > 0),
    source            text NOT NULL,
    filename          text,
    source_partition  integer NOT NULL,
    source_offset     bigint NOT NULL,
    PRIMARY KEY (tenant, event_id)
);
CREATE INDEX instance_uploads_by_instance ON instance_uploads (tenant, study_uid, sop_instance_uid);
COMMENT ON TABLE instance_uploads IS 'One row per accepted upload, also where its instance was there already: the evidence that nothing was lost';
COMMENT ON COLUMN instance_uploads.tenant IS 'Owner of the files';
COMMENT ON COLUMN instance_uploads.event_id IS 'The upload''s id, made from tenant, content and the client''s own id';
COMMENT ON COLUMN instance_uploads.uploaded_at IS 'When the upload was received';
COMMENT ON COLUMN instance_uploads.study_uid IS '(0020,000D) Study Instance UID';
COMMENT ON COLUMN instance_uploads.series_uid IS '(0020,000E) Series Instance UID';
COMMENT ON COLUMN instance_uploads.sop_instance_uid IS '(0008,0018) SOP Instance UID';
COMMENT ON COLUMN instance_uploads.digest IS 'SHA-256 of the uploaded file';
COMMENT ON COLUMN instance_uploads.size_bytes IS 'Size of the uploaded file in bytes';
COMMENT ON COLUMN instance_uploads.source IS 'The way it came: stow, form, folder';
COMMENT ON COLUMN instance_uploads.filename IS 'Name the sender gave the file';
COMMENT ON COLUMN instance_uploads.source_partition IS 'Partition of dicom-instances that the row came from';
COMMENT ON COLUMN instance_uploads.source_offset IS 'Offset in that partition';

CREATE VIEW dicom_uploads AS
SELECT u.tenant, u.event_id, u.uploaded_at, u.study_uid, u.sop_instance_uid, u.source, u.filename, u.digest,
       CASE WHEN u.event_id = i.event_id THEN 'first'
            WHEN u.digest = i.digest     THEN 'same'
            ELSE                              'conflicting' END AS relation
FROM instance_uploads u
JOIN instances i USING (tenant, study_uid, sop_instance_uid);
COMMENT ON VIEW dicom_uploads IS 'Every accepted upload and what it was to its instance';
COMMENT ON COLUMN dicom_uploads.relation IS 'first: it brought the instance; same: the same bytes again; conflicting: other bytes under the same UID, kept but not shown';

CREATE VIEW series_overview AS
SELECT s.tenant, s.study_uid, s.series_uid, s.modality, s.series_number, s.series_description, s.series_date,
       s.series_time, s.body_part, s.manufacturer, s.institution_name, s.uploaded_at, n.instances_total,
       n.size_bytes
FROM series s
CROSS JOIN LATERAL (
    SELECT count(*) AS instances_total, coalesce(sum(size_bytes), 0)::bigint AS size_bytes
    FROM instances WHERE tenant = s.tenant AND study_uid = s.study_uid AND series_uid = s.series_uid) n;
COMMENT ON VIEW series_overview IS 'Series with the number and size of their instances';
COMMENT ON COLUMN series_overview.instances_total IS 'Instances in the series';
COMMENT ON COLUMN series_overview.size_bytes IS 'Size of their files in bytes';

CREATE VIEW study_overview AS
SELECT s.tenant, s.study_uid, s.patient_id, s.patient_name, s.patient_birth_date, s.patient_sex, s.study_date,
       s.study_time, s.study_description, s.study_id, s.accession_number, s.referring_physician_name,
       s.uploaded_at, r.modalities, r.series_total, n.instances_total, n.size_bytes
FROM studies s
CROSS JOIN LATERAL (
    SELECT array_remove(array_agg(DISTINCT modality ORDER BY modality), NULL) AS modalities,
           count(*) AS series_total
    FROM series WHERE tenant = s.tenant AND study_uid = s.study_uid) r
CROSS JOIN LATERAL (
    SELECT count(*) AS instances_total, coalesce(sum(size_bytes), 0)::bigint AS size_bytes
    FROM instances WHERE tenant = s.tenant AND study_uid = s.study_uid) n;
COMMENT ON VIEW study_overview IS 'Studies with their modalities and the numbers of their series and instances';
COMMENT ON COLUMN study_overview.modalities IS 'Modalities of its series, each once, sorted';
COMMENT ON COLUMN study_overview.series_total IS 'Series in the study';
COMMENT ON COLUMN study_overview.instances_total IS 'Instances in the study';
COMMENT ON COLUMN study_overview.size_bytes IS 'Size of their files in bytes';

CREATE VIEW study_conflicts AS
SELECT tenant, study_uid, array_agg(DISTINCT coalesce(patient_id, '')) AS patient_ids
FROM instances
GROUP BY tenant, study_uid
HAVING count(DISTINCT coalesce(patient_id, '')) > 1;
COMMENT ON VIEW study_conflicts IS 'Studies whose files name more than one patient: to be settled by a person';
COMMENT ON COLUMN study_conflicts.patient_ids IS 'The Patient IDs found; empty text where a file has none';
