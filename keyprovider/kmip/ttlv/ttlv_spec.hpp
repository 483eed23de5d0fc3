// The tags, types and enumerations of KMIP that the client uses. Numbers are those of the KMIP specification 1.4 (OASIS
// Standard, 22 November 2017), section 9.1.3 (tags 9.1.3.1, enumerations 9.1.3.2, masks
// 9.1.3.3); the ones marked 2.0 those of version 2.0 (31 October 2019), section 11.
#pragma once

#include <cstdint>

namespace coffer::kmip {

// Section 9.1.1.2.
enum class Type : uint8_t {
    Structure = 0x01,
    Integer = 0x02,
    LongInteger = 0x03,
    BigInteger = 0x04,
    Enumeration = 0x05,
    Boolean = 0x06,
    TextString = 0x07,
    ByteString = 0x08,
    DateTime = 0x09,
    Interval = 0x0A,
};

// On the wire three bytes.
enum class Tag : uint32_t {
    ApplicationSpecificInformation = 0x420004,
    Attribute = 0x420008,
    AttributeIndex = 0x420009,
    AttributeName = 0x42000A,
    AttributeValue = 0x42000B,
    BatchCount = 0x42000D,
    BatchItem = 0x42000F,
    BlockCipherMode = 0x420011,
    CompromiseOccurrenceDate = 0x420021,
    CryptographicAlgorithm = 0x420028,
    CryptographicLength = 0x42002A,
    CryptographicParameters = 0x42002B,
    CryptographicUsageMask = 0x42002C,
    EncryptionKeyInformation = 0x420036,
    IvCounterNonce = 0x42003D,
    KeyBlock = 0x420040,
    KeyFormatType = 0x420042,
    KeyMaterial = 0x420043,
    KeyValue = 0x420045,
    KeyWrappingData = 0x420046,
    KeyWrappingSpecification = 0x420047,
    MaximumItems = 0x42004F,
    MaximumResponseSize = 0x420050,
    Name = 0x420053,
    NameType = 0x420054,
    NameValue = 0x420055,
    ObjectType = 0x420057,
    Operation = 0x42005C,
    ProtocolVersion = 0x420069,
    ProtocolVersionMajor = 0x42006A,
    ProtocolVersionMinor = 0x42006B,
    QueryFunction = 0x420074,
    RequestHeader = 0x420077,
    RequestMessage = 0x420078,
    RequestPayload = 0x420079,
    ResponseHeader = 0x42007A,
    ResponseMessage = 0x42007B,
    ResponsePayload = 0x42007C,
    ResultMessage = 0x42007D,
    ResultReason = 0x42007E,
    ResultStatus = 0x42007F,
    RevocationReason = 0x420081,
    RevocationReasonCode = 0x420082,
    State = 0x42008D,
    SymmetricKey = 0x42008F,
    TemplateAttribute = 0x420091,
    UniqueBatchItemId = 0x420093,
    UniqueIdentifier = 0x420094,
    VendorIdentification = 0x42009D,
    WrappingMethod = 0x42009E,
    EncodingOption = 0x4200A3,
    Data = 0x4200C2,
    TagLength = 0x4200CE,
    AuthenticatedEncryptionTag = 0x4200FF,
    Attributes = 0x420125,         // 2.0
    AttributeReference = 0x42013B, // 2.0
    NewAttribute = 0x42013D,       // 2.0
};

enum class Operation : uint32_t {
    Create = 0x01,
    Register = 0x03,
    Locate = 0x08,
    Get = 0x0A,
    GetAttributes = 0x0B,
    AddAttribute = 0x0D,
    Activate = 0x12,
    Revoke = 0x13,
    Destroy = 0x14,
    Query = 0x18,
    DiscoverVersions = 0x1E,
    Encrypt = 0x1F,
    Decrypt = 0x20,
    SetAttribute = 0x31, // 2.0
};

enum class State : uint32_t {
    PreActive = 1,
    Active = 2,
    Deactivated = 3,
    Compromised = 4,
    Destroyed = 5,
    DestroyedCompromised = 6,
};

enum class ResultStatus : uint32_t { Success = 0, OperationFailed = 1, OperationPending = 2, OperationUndone = 3 };

// The ones that a client treats alike are not told apart.
enum class ResultReason : uint32_t {
    ItemNotFound = 0x01,
    AuthenticationNotSuccessful = 0x03,
    InvalidMessage = 0x04,
    OperationNotSupported = 0x05,
    FeatureNotSupported = 0x08,
    CryptographicFailure = 0x0A,
    PermissionDenied = 0x0C,
    GeneralFailure = 0x100,
};

enum class ObjectType : uint32_t { SymmetricKey = 2 };
enum class CryptographicAlgorithm : uint32_t { Aes = 3 };
enum class BlockCipherMode : uint32_t { Gcm = 9, NistKeyWrap = 13 };
enum class KeyFormatType : uint32_t { Raw = 1 };
enum class NameType : uint32_t { UninterpretedTextString = 1 };
enum class QueryFunction : uint32_t { Operations = 1, Objects = 2, ServerInformation = 3 };
enum class RevocationReasonCode : uint32_t { KeyCompromise = 2, CessationOfOperation = 6 };
enum class WrappingMethod : uint32_t { Encrypt = 1 };
enum class EncodingOption : uint32_t { NoEncoding = 1 };

// Bits of the cryptographic usage mask.
constexpr uint32_t k_usage_encrypt = 0x4;
constexpr uint32_t k_usage_decrypt = 0x8;

} // namespace coffer::kmip
