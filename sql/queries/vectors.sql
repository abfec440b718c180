-- name: nearest
-- Exact, by cosine distance, within the collection and, where $4 is given, the sources named.
select id, text, metadata, 1 - (embedding <=> $3::vector) as score
from documents
where tenant = $1 and collection = $2 and ($4::text[] is null or metadata ->> 'source' = any ($4))
order by embedding <=> $3::vector
limit $5;
