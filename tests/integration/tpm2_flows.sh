# The common flows of tpm2-tools, for busybox' sh and others. Each flow runs in a shell of its own with -e and prints
# "PASS name" or "FAIL name" with what it printed; the last line is "FLOWS passed/all". TPM2TOOLS_TCTI says where the
# TPM is. Works with and without a resource manager: transient objects and sessions are flushed in between.
# $OUTSIDE, if set, is a folder with rsa.pem and ecc.pem: keys made outside of the TPM.
WORK=$(mktemp -d)
cd "$WORK" || exit 1
PASSED=0
ALL=0
export TPM2TOOLS_AUTOFLUSH=yes

flush() { for what in -t -l -s; do tpm2_flushcontext $what >/dev/null 2>&1 || true; done; }
fails() { if "$@" >refused.out 2>&1; then echo "this should have been refused: $*"; return 1; fi; }
# What a policy session that runs the commands in "$1" comes to; S is the session.
policy() {
    tpm2_startauthsession -Q -S trial.session; S=trial.session; eval "$1"; tpm2_flushcontext trial.session
}
session() { flush; tpm2_startauthsession -Q -S session "$@"; S=session; }
storage() { flush; tpm2_createprimary -Q -C o -G ecc -c primary.ctx; flush; }
load() { flush; tpm2_load -Q -C primary.ctx -u $1.pub -r $1.priv -c $1.ctx; flush; }
create() { name=$1; shift; flush; tpm2_create -Q -C primary.ctx -u $name.pub -r $name.priv "$@"; load $name; }
property() { tpm2_getcap properties-variable | sed -n "s/^ *$1: *//p"; }

flow() {
    ALL=$((ALL + 1))
    # Not as a condition, where -e has no effect.
    (set -e; "$1") >out 2>&1
    if [ $? -eq 0 ]; then
        PASSED=$((PASSED + 1)); echo "PASS $1"
    else
        echo "FAIL $1"; sed 's/^/    /' out
    fi
    flush
}

selftest() { tpm2_selftest -f; tpm2_gettestresult; }
getrandom() { [ "$(tpm2_getrandom --hex 16 | wc -c)" -eq 32 ]; [ "$(tpm2_getrandom --hex 16)" != "$(tpm2_getrandom --hex 16)" ]; }
getcap() { for what in algorithms commands pcrs properties-fixed ecc-curves; do tpm2_getcap $what >/dev/null; done; }
hash() {
    printf 'abc' >abc
    [ "$(tpm2_hash -g sha256 --hex abc)" = ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad ]
    head -c 5000 /dev/zero >long
    [ "$(tpm2_hash -g sha256 --hex long)" = "$(sha256sum <long | cut -d ' ' -f 1)" ]
    [ "$(tpm2_hash -g sha512 --hex long)" = "$(sha512sum <long | cut -d ' ' -f 1)" ]
}
pcr() {
    before=$(tpm2_pcrread sha256:16); tpm2_pcrextend 16:sha256=$(printf 'abc' | sha256sum | cut -d ' ' -f 1)
    [ "$before" != "$(tpm2_pcrread sha256:16)" ]; printf 'event' >event; tpm2_pcrevent 16 event >/dev/null
    tpm2_pcrreset 16; tpm2_pcrread sha256:16 | grep -q '0x0000000000000000000000000000000000000000000000000000000000000000'
}
sign_rsa() {
    storage; create rsa -G rsa2048; printf 'message' >message
    tpm2_sign -Q -c rsa.ctx -g sha256 -s rsassa -o signature message; flush
    tpm2_verifysignature -Q -c rsa.ctx -g sha256 -s signature -m message; flush
    tpm2_sign -Q -c rsa.ctx -g sha256 -s rsapss -o signature message; flush
    tpm2_verifysignature -Q -c rsa.ctx -g sha256 -s signature -m message; flush
    printf 'Message' >other; fails tpm2_verifysignature -Q -c rsa.ctx -g sha256 -s signature -m other
}
sign_ecc() {
    storage; printf 'message' >message
    for curve in ecc256 ecc384; do
        create $curve -G $curve; tpm2_sign -Q -c $curve.ctx -g sha256 -s ecdsa -o signature message; flush
        tpm2_verifysignature -Q -c $curve.ctx -g sha256 -s signature -m message
    done
}
rsa_encrypt() {
    storage; create rsa -G rsa2048; printf 'plain' >plain
    for scheme in rsaes oaep; do
        tpm2_rsaencrypt -Q -c rsa.ctx -s $scheme -o cipher plain; flush
        tpm2_rsadecrypt -Q -c rsa.ctx -s $scheme -o again cipher; flush; cmp plain again
    done
}
ecdh() {
    storage; create dh -G ecc256:ecdh -a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|decrypt'
    tpm2_ecdhkeygen -u point -o shared -c dh.ctx; flush; tpm2_ecdhzgen -u point -o again -c dh.ctx; cmp shared again
}
hmac() {
    storage; create mac -G hmac; printf 'data' >data
    tpm2_hmac -c mac.ctx -o one data; flush; tpm2_hmac -c mac.ctx -o two data; cmp one two
}
encryptdecrypt() {
    storage; create aes -G aes128; head -c 3008 /dev/urandom >plain; head -c 16 /dev/zero >iv
    for mode in cfb cbc ctr; do
        tpm2_encryptdecrypt -Q -c aes.ctx -G $mode -t iv -o cipher plain; flush; fails cmp plain cipher
        tpm2_encryptdecrypt -Q -c aes.ctx -G $mode -t iv -d -o again cipher; flush; cmp plain again
    done
}
seal_unseal() {
    storage; flush; printf 'sealed' | tpm2_create -Q -C primary.ctx -i- -p secret -u seal.pub -r seal.priv; load seal
    [ "$(tpm2_unseal -c seal.ctx -p secret)" = sealed ]; flush; fails tpm2_unseal -c seal.ctx -p wrong
}
policy_pcr() {
    storage; policy 'tpm2_policypcr -Q -S $S -l sha256:16 -L pcr.policy'
    flush; printf 'sealed' | tpm2_create -Q -C primary.ctx -L pcr.policy -i- -u p.pub -r p.priv; load p
    [ "$(tpm2_unseal -c p.ctx -p pcr:sha256:16)" = sealed ]; flush
    tpm2_pcrextend 16:sha256=$(printf 'x' | sha256sum | cut -d ' ' -f 1); fails tpm2_unseal -c p.ctx -p pcr:sha256:16
    tpm2_pcrreset 16; flush; [ "$(tpm2_unseal -c p.ctx -p pcr:sha256:16)" = sealed ]
}
policy_authvalue() {
    storage; policy 'tpm2_policyauthvalue -Q -S $S -L av.policy'
    flush; printf 'sealed' | tpm2_create -Q -C primary.ctx -L av.policy -p secret -i- -u p.pub -r p.priv; load p
    session --policy-session; tpm2_policyauthvalue -Q -S $S; [ "$(tpm2_unseal -c p.ctx -p session:$S+secret)" = sealed ]
    session --policy-session; tpm2_policyauthvalue -Q -S $S; fails tpm2_unseal -c p.ctx -p session:$S+wrong
}
policy_secret() {
    storage; policy 'tpm2_policysecret -Q -S $S -c o -L ps.policy'
    flush; printf 'sealed' | tpm2_create -Q -C primary.ctx -L ps.policy -i- -u p.pub -r p.priv; load p
    session --policy-session; tpm2_policysecret -Q -S $S -c o; [ "$(tpm2_unseal -c p.ctx -p session:$S)" = sealed ]
    session --policy-session; fails tpm2_unseal -c p.ctx -p session:$S
}
policy_or_command() {
    storage; policy 'tpm2_policycommandcode -Q -S $S TPM2_CC_Unseal -L cc.policy'
    policy 'tpm2_policypassword -Q -S $S -L pw.policy'
    policy 'tpm2_policyor -Q -S $S -L or.policy sha256:cc.policy,pw.policy'
    flush; printf 'sealed' | tpm2_create -Q -C primary.ctx -L or.policy -i- -u p.pub -r p.priv; load p
    session --policy-session; tpm2_policycommandcode -Q -S $S TPM2_CC_Unseal
    tpm2_policyor -Q -S $S sha256:cc.policy,pw.policy; [ "$(tpm2_unseal -c p.ctx -p session:$S)" = sealed ]
}
nv() {
    tpm2_nvdefine -Q 0x1500010 -C o -s 64 -a 'ownerread|ownerwrite|authread|authwrite|write_stclear|read_stclear'
    head -c 64 /dev/urandom >data; tpm2_nvwrite 0x1500010 -C o -i data; tpm2_nvread 0x1500010 -C o -s 64 -o again; cmp data again
    printf 'part' | tpm2_nvwrite 0x1500010 -C o --offset 60 -i-; [ "$(tpm2_nvread 0x1500010 -C o -s 4 --offset 60)" = part ]
    tpm2_nvwritelock 0x1500010 -C o; fails tpm2_nvwrite 0x1500010 -C o -i data
    tpm2_nvreadlock 0x1500010 -C o; fails tpm2_nvread 0x1500010 -C o -s 4
    tpm2_nvundefine 0x1500010 -C o
}
nv_counter() {
    tpm2_nvdefine -Q 0x1500011 -C o -s 8 -a 'nt=counter|ownerread|ownerwrite'
    tpm2_nvincrement 0x1500011 -C o; one=$(tpm2_nvread 0x1500011 -C o | od -An -tx1); tpm2_nvincrement 0x1500011 -C o
    two=$(tpm2_nvread 0x1500011 -C o | od -An -tx1); [ "$one" != "$two" ]; tpm2_nvundefine 0x1500011 -C o
}
nv_bits_extend() {
    tpm2_nvdefine -Q 0x1500012 -C o -s 8 -a 'nt=bits|ownerread|ownerwrite'; tpm2_nvsetbits 0x1500012 -C o -i 0x11
    [ "$(tpm2_nvread 0x1500012 -C o | od -An -tx1 | tr -d ' \n')" = 0000000000000011 ]; tpm2_nvundefine 0x1500012 -C o
    tpm2_nvdefine -Q 0x1500013 -C o -g sha256 -a 'nt=extend|ownerread|ownerwrite'; printf 'x' | tpm2_nvextend 0x1500013 -C o -i-
    tpm2_nvread 0x1500013 -C o >/dev/null; tpm2_nvundefine 0x1500013 -C o
}
nv_policy() {
    policy 'tpm2_policypcr -Q -S $S -l sha256:16 -L pcr.policy'
    tpm2_nvdefine -Q 0x1500014 -C o -s 8 -L pcr.policy -a 'policyread|policywrite|ownerwrite'
    printf 'contents' | tpm2_nvwrite 0x1500014 -C o -i-; [ "$(tpm2_nvread 0x1500014 -P pcr:sha256:16)" = contents ]
    tpm2_nvundefine 0x1500014 -C o
}
certify() {
    storage; create signer -G ecc256; create subject -G ecc256
    tpm2_certify -Q -c subject.ctx -C signer.ctx -g sha256 -o attest -s signature; flush
    tpm2_verifysignature -Q -c signer.ctx -g sha256 -s signature -m attest
    flush; tpm2_createprimary -Q -C o -G ecc -c made.ctx --creation-data data --creation-hash h -t ticket -d h; flush
    tpm2_certifycreation -Q -C signer.ctx -c made.ctx -d h -t ticket -g sha256 -o signature2 --attestation attest2
}
quote() {
    flush; tpm2_createek -Q -c ek.ctx -G ecc -u ek.pub; flush
    tpm2_createak -Q -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak.pub -f pem -n ak.name; flush
    tpm2_quote -Q -c ak.ctx -l sha256:0,1,2,16 -q 0011223344 -m quote.msg -s quote.sig -o quote.pcrs -g sha256; flush
    tpm2_checkquote -Q -u ak.pub -m quote.msg -s quote.sig -f quote.pcrs -g sha256 -q 0011223344
    fails tpm2_checkquote -Q -u ak.pub -m quote.msg -s quote.sig -f quote.pcrs -g sha256 -q 0011223355
}
credential() {
    flush; tpm2_createek -Q -c ek.ctx -G rsa -u ek.pub; flush
    tpm2_createak -Q -C ek.ctx -c ak.ctx -G rsa -g sha256 -s rsassa -u ak.pub -n ak.name; flush
    printf 'a-secret' >secret; tpm2_makecredential -Q -u ek.pub -s secret -n "$(od -An -v -tx1 ak.name | tr -d ' \n')" -o credential; flush
    session --policy-session; tpm2_policysecret -Q -S $S -c e
    tpm2_activatecredential -Q -c ak.ctx -C ek.ctx -i credential -o again -P session:$S; cmp secret again
}
import_aes() {
    storage; head -c 16 /dev/urandom >key; tpm2_import -Q -C primary.ctx -G aes -i key -u imported.pub -r imported.priv
    load imported; head -c 16 /dev/zero >iv; head -c 100 /dev/urandom >plain
    tpm2_encryptdecrypt -Q -c imported.ctx -t iv -o cipher plain; flush; tpm2_encryptdecrypt -Q -c imported.ctx -t iv -d -o again cipher; cmp plain again
}
import_pem() {
    storage; printf 'message' >message
    for kind in rsa ecc; do
        flush; tpm2_import -Q -C primary.ctx -G $kind -i "$OUTSIDE/$kind.pem" -u $kind.pub -r $kind.priv; load $kind
        tpm2_sign -Q -c $kind.ctx -g sha256 -o signature message; flush; tpm2_verifysignature -Q -c $kind.ctx -g sha256 -s signature -m message
    done
    flush; tpm2_loadexternal -Q -C o -G rsa -r "$OUTSIDE/rsa.pem" -C n -c outside.ctx
}
duplicate() {
    storage; flush; tpm2_createprimary -Q -C o -G rsa -c parent.ctx; flush; tpm2_readpublic -Q -c parent.ctx -o parent.pub; flush
    policy 'tpm2_policycommandcode -Q -S $S TPM2_CC_Duplicate -L dup.policy'
    create moving -G ecc256 -L dup.policy -a 'sensitivedataorigin|userwithauth|decrypt|sign'
    tpm2_loadexternal -Q -C o -u parent.pub -c target.ctx
    tpm2_startauthsession -Q -S session --policy-session; tpm2_policycommandcode -Q -S session TPM2_CC_Duplicate
    tpm2_duplicate -Q -C target.ctx -c moving.ctx -G null -p session:session -r dup.priv -s seed; flush
    tpm2_import -Q -C parent.ctx -u moving.pub -i dup.priv -r moved.priv -s seed -L dup.policy; flush
    tpm2_load -Q -C parent.ctx -u moving.pub -r moved.priv -c moved.ctx; flush
    printf 'message' >message; tpm2_sign -Q -c moved.ctx -g sha256 -s ecdsa -o signature message
}
session_hmac() {
    storage; create key -G ecc256 -p secret; printf 'message' >message
    session --hmac-session; tpm2_sign -Q -c key.ctx -p session:$S+secret -g sha256 -o signature message; flush
    session --hmac-session; fails tpm2_sign -Q -c key.ctx -p session:$S+wrong -g sha256 -o signature message
}
session_encrypted() {
    storage; flush; printf 'sealed' | tpm2_create -Q -C primary.ctx -i- -p secret -u seal.pub -r seal.priv; load seal
    session --hmac-session --tpmkey-context primary.ctx; tpm2_sessionconfig $S --enable-encrypt --enable-decrypt
    [ "$(tpm2_unseal -c seal.ctx -p session:$S+secret)" = sealed ]
    session --hmac-session --tpmkey-context primary.ctx; tpm2_sessionconfig $S --enable-encrypt
    [ "$(tpm2_getrandom 8 --hex -S $S | wc -c)" -eq 16 ]
}
evictcontrol() {
    storage; create key -G ecc256; tpm2_evictcontrol -Q -C o -c key.ctx 0x81000123; tpm2_getcap handles-persistent | grep -q 0x81000123
    printf 'message' >message; tpm2_sign -Q -c 0x81000123 -g sha256 -o signature message; tpm2_readpublic -Q -c 0x81000123
    tpm2_evictcontrol -Q -C o -c 0x81000123; [ "$(tpm2_getcap handles-persistent | grep -c 0x81000123)" -eq 0 ]
}
dictionarylockout() {
    tpm2_dictionarylockout -c; tpm2_dictionarylockout -s -n 3 -t 1000 -l 1000
    storage; create key -G ecc256 -p secret -a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign'; printf 'message' >message
    for try in 1 2 3; do fails tpm2_sign -Q -c key.ctx -p wrong -g sha256 -o signature message; flush; done
    [ $(($(property TPM2_PT_LOCKOUT_COUNTER))) -eq 3 ]
    fails tpm2_sign -Q -c key.ctx -p secret -g sha256 -o signature message; flush
    tpm2_dictionarylockout -c; [ $(($(property TPM2_PT_LOCKOUT_COUNTER))) -eq 0 ]
    tpm2_sign -Q -c key.ctx -p secret -g sha256 -o signature message; tpm2_dictionarylockout -s -n 32 -t 1000 -l 1000
}
changeauth() {
    tpm2_changeauth -Q -c o password; fails tpm2_createprimary -Q -C o -G ecc -c primary.ctx
    flush; tpm2_createprimary -Q -C o -P password -G ecc -c primary.ctx; flush; tpm2_changeauth -Q -c o -p password
    storage; create key -G ecc256 -p old; tpm2_changeauth -Q -c key.ctx -C primary.ctx -p old -r key.priv new; flush
    load key; printf 'message' >message; tpm2_sign -Q -c key.ctx -p new -g sha256 -o signature message
}
clock() { tpm2_readclock >/dev/null; storage; create signer -G ecc256; tpm2_gettime -Q -c signer.ctx -g sha256 -o signature --attestation attest; }

# Wrong passwords on purpose must not add up to a lockout.
tpm2_dictionarylockout -c && tpm2_dictionarylockout -s -n 32 -t 1000 -l 1000
for name in selftest getrandom getcap hash pcr sign_rsa sign_ecc rsa_encrypt ecdh hmac encryptdecrypt seal_unseal policy_pcr \
    policy_authvalue policy_secret policy_or_command nv nv_counter nv_bits_extend nv_policy certify quote credential \
    import_aes ${OUTSIDE:+import_pem} duplicate session_hmac session_encrypted evictcontrol dictionarylockout changeauth clock; do
    [ -z "$ONLY" ] || [ "$ONLY" = "$name" ] || continue
    flow $name
done
echo "FLOWS $PASSED/$ALL"
[ "$PASSED" -eq "$ALL" ]
