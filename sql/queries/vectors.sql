-- name: search
-- The $9 best of a collection. By vector $6: exact, by cosine similarity, among vectors with as many numbers. By words $7:
-- any of them, by ts_rank. By both: reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009) with their constant,
-- the sum of 1 / (60 + rank) over the two lists, of which each has up to $8. The best are `among` in number;
-- returns as many of them as have $11 bytes, but at least one.
with nearest as (
    select id, 1 - distance as score, row_number() over (order by distance, id) as rank
    from (select id, embedding <=> $6::vector as distance from documents
          where tenant = $1 and collection = $2 and ($3::text[] is null or metadata ->> 'source' = any ($3))
            and ($4::jsonpath is null or jsonb_path_exists(metadata, $4, $5::jsonb))
            and vector_dims(embedding) = vector_dims($6::vector)
          order by distance, id limit $8) as near
), worded as (
    select id, score, row_number() over (order by score desc, id) as rank
    from (select id, ts_rank(document_words(text), any_word($7::text))::double precision as score from documents
          where tenant = $1 and collection = $2 and ($3::text[] is null or metadata ->> 'source' = any ($3))
            and ($4::jsonpath is null or jsonb_path_exists(metadata, $4, $5::jsonb))
            and document_words(text) @@ any_word($7::text)
          order by score desc, id limit $8) as ranked
), scores as (
    select id, n.score as vector, w.score as keyword,
           case when $6::vector is null or $7::text is null then coalesce(n.score, w.score)
                else coalesce(1.0::double precision / (60 + n.rank), 0) + coalesce(1.0::double precision / (60 + w.rank), 0)
           end as score
    from nearest n full join worded w using (id)
), best as (
    select d.id, d.text, d.metadata, scores.score, scores.vector, scores.keyword
    from scores join documents d on d.tenant = $1 and d.collection = $2 and d.id = scores.id
    where $10::double precision is null or scores.score >= $10
    order by scores.score desc, d.id
    limit $9
)
select * from (
    select *, count(*) over () as among, row_number() over (order by score desc, id) as nth,
           sum(octet_length(text) + octet_length(metadata::text)) over (order by score desc, id) as bytes
    from best) as sized
where bytes <= $11 or nth = 1
order by nth;

-- name: dimensions
select distinct vector_dims(embedding) as dimensions from documents where tenant = $1 and collection = $2 order by 1 limit 10;

-- name: upsert
-- Who did it ($7) goes on record in the same statement.
with operation as (
    insert into operations (op_id, tenant, actor, action, detail)
    select gen_random_uuid(), $1, $7, 'write_documents', json_build_object('collection', collection, 'documents', count(*))
    from unnest($2::text[]) as collection group by collection
)
insert into documents (tenant, collection, id, text, embedding, metadata)
select $1, d.collection, d.id, d.text, d.embedding::vector, d.metadata::jsonb
from unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[]) as d (collection, id, text, embedding, metadata)
order by d.id
on conflict (tenant, collection, id) do update
    set text = excluded.text, embedding = excluded.embedding, metadata = excluded.metadata, event_id = null,
        written_at = clock_timestamp();

-- name: ids
select id from documents
where tenant = $1 and collection = $2 and ($3::text[] is null or id = any ($3))
  and ($4::jsonpath is null or jsonb_path_exists(metadata, $4, $5::jsonb))
order by id limit $6;

-- name: delete
-- Up to $6 of those that fit; who did it goes on record in the same transaction.
with chosen as (
    select id from documents
    where tenant = $1 and collection = $2 and ($3::text[] is null or id = any ($3))
      and ($4::jsonpath is null or jsonb_path_exists(metadata, $4, $5::jsonb))
    order by id limit $6 for update
), deleted as (
    delete from documents d using chosen where d.tenant = $1 and d.collection = $2 and d.id = chosen.id returning d.id
), operation as (
    insert into operations (op_id, tenant, actor, action, detail)
    select gen_random_uuid(), $1, $7, 'discard', json_build_object('collection', $2::text, 'documents', count(*))
    from deleted having count(*) > 0
)
select count(*)::integer from deleted;
